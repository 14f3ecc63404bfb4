//! The elements of a request's `params`, parsed one by one: a request may have many thousands, and none of them is
//! looked at before it is its turn.

use std::str::Utf8Error;

use serde::Deserialize;

use crate::error::RpcError;
use crate::framing::AT_ONCE;
use crate::message::Request;

/// The elements that are not read yet.
#[derive(Debug)]
pub(crate) struct Elements<'a> {
    request: &'a Request<'a>,
    /// From the next element on, or from the end of the array.
    rest: &'a [u8],
    /// As much of that as is known to be UTF-8: asked for each string by itself, it takes a fifth of the time.
    text: &'a str,
    /// How many are read.
    read: usize,
}

impl<'a> Elements<'a> {
    /// Those of an array that has at least one.
    pub(crate) fn of(request: &'a Request<'a>) -> Result<Self, RpcError> {
        let Some(inside) = without_space(request.params_text()).strip_prefix(b"[") else {
            return Err(request.invalid("expected an array as `params`".to_owned()));
        };
        let rest = without_space(inside);
        if rest.starts_with(b"]") {
            return Err(request.invalid("`params` is empty: name at least one listener".to_owned()));
        }
        Ok(Self { request, rest, text: "", read: 0 })
    }

    /// Whether all are read.
    pub(crate) fn is_empty(&self) -> bool {
        self.rest == b"]"
    }

    /// How many are read.
    pub(crate) fn read(&self) -> usize {
        self.read
    }

    /// How many bytes are not read yet.
    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    /// Reads the next one, with what separates it from the one behind it. An error says which one it is.
    pub(crate) fn next<T: Deserialize<'a>>(&mut self) -> Result<T, RpcError> {
        let whole = self.rest.len();
        let (value, length) = self.value()?;
        let behind = without_space(self.rest.get(length..).unwrap_or_default());
        let next = behind.strip_prefix(b",").map(without_space);
        self.rest = match next.filter(|next| !next.starts_with(b"]")) {
            Some(next) => next,
            None if behind == b"]" => behind,
            None if without_space(behind).len() < behind.len() => return Err(self.too_long()),
            None => {
                return Err(self
                    .request
                    .not_json(behind, "expected `,` and another element, or `]`"));
            }
        };
        self.text = self.text.get(whole - self.rest.len()..).unwrap_or_default();
        self.read += 1;
        Ok(value)
    }

    /// The value of the next one, and how many bytes it takes.
    fn value<T: Deserialize<'a>>(&mut self) -> Result<(T, usize), RpcError> {
        if let Some(found) = first(self.text) {
            return Ok(found);
        }
        // No longer one is parsed: all are objects or strings, which have no other end before it.
        let at_once = &self.rest[..self.rest.len().min(AT_ONCE)];
        let whole = std::str::from_utf8(at_once);
        let cut = |error: Utf8Error| std::str::from_utf8(&at_once[..error.valid_up_to()]);
        self.text = whole.or_else(cut).unwrap_or_default();
        if let Some(found) = first(self.text) {
            return Ok(found);
        }
        let is_cut = at_once.len() < self.rest.len();
        let mut values = serde_json::Deserializer::from_slice(at_once).into_iter();
        match values.next() {
            Some(Ok(value)) => Ok((value, values.byte_offset())),
            Some(Err(error)) if !(is_cut && error.is_eof()) => {
                let what = format!("params[{}]: ", self.read);
                Err(self.request.unread(&what, self.rest, &error))
            }
            _ => Err(self.too_long()),
        }
    }

    fn too_long(&self) -> RpcError {
        let message =
            format!("params[{}]: longer than {AT_ONCE} bytes, white space included", self.read);
        self.request.invalid(message)
    }

    /// Reads the only one.
    pub(crate) fn only<T: Deserialize<'a>>(mut self) -> Result<T, RpcError> {
        let one = self.next()?;
        if self.is_empty() {
            Ok(one)
        } else {
            Err(self.request.invalid("`params` has more than one element".to_owned()))
        }
    }
}

/// The value that a text begins with, and how many bytes it takes.
fn first<'a, T: Deserialize<'a>>(text: &'a str) -> Option<(T, usize)> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter();
    let value = values.next()?.ok()?;
    Some((value, values.byte_offset()))
}

/// The text without the white space at its beginning, as far as that is looked at at once.
fn without_space(text: &[u8]) -> &[u8] {
    let is_space = |byte: &&u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    &text[text.iter().take(AT_ONCE).take_while(is_space).count()..]
}
