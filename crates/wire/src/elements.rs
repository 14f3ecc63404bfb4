//! The elements of a request's `params`, parsed one by one: a request may have many thousands, and
//! each is parsed only when its turn comes.

use std::str::Utf8Error;

use serde::Deserialize;

use crate::error::RpcError;
use crate::framing::AT_ONCE;
use crate::message::Request;

/// The elements not read yet.
#[derive(Debug)]
pub(crate) struct Elements<'a> {
    request: &'a Request<'a>,
    /// The text from the next element on, or from the end of the array.
    rest: &'a [u8],
    /// The part of `rest` known to be UTF-8. A check for each string alone takes a fifth of the
    /// time.
    text: &'a str,
    /// How many elements have been read.
    read: usize,
}

impl<'a> Elements<'a> {
    /// The elements of an array with at least one.
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

    /// Whether all elements have been read.
    pub(crate) fn is_empty(&self) -> bool {
        self.rest == b"]"
    }

    pub(crate) fn read(&self) -> usize {
        self.read
    }

    /// How many bytes have not been read yet.
    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    /// Reads the next element and the separator after it. An error names the element.
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

    /// The value of the next element, and its length in bytes.
    fn value<T: Deserialize<'a>>(&mut self) -> Result<(T, usize), RpcError> {
        if let Some(found) = first(self.text) {
            return Ok(found);
        }
        // Longer elements are refused. A cut one cannot pass for a shorter one: all are objects or
        // strings, which have no earlier end.
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

    /// Reads the only element.
    pub(crate) fn only<T: Deserialize<'a>>(mut self) -> Result<T, RpcError> {
        let one = self.next()?;
        if self.is_empty() {
            Ok(one)
        } else {
            Err(self.request.invalid("`params` has more than one element".to_owned()))
        }
    }
}

/// The value at the beginning of a text, and its length in bytes.
fn first<'a, T: Deserialize<'a>>(text: &'a str) -> Option<(T, usize)> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter();
    let value = values.next()?.ok()?;
    Some((value, values.byte_offset()))
}

/// The text without leading white space, as far as one step looks.
fn without_space(text: &[u8]) -> &[u8] {
    let is_space = |byte: &&u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    &text[text.iter().take(AT_ONCE).take_while(is_space).count()..]
}
