//! The elements of a request's `params`, read one by one: a request may have many thousands, and none of them is
//! read before it is its turn.

use serde::Deserialize;

use crate::error::RpcError;
use crate::message::{Request, without_place};

/// What JSON takes for white space.
const SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// The elements that are not read yet.
#[derive(Debug)]
pub(crate) struct Elements<'a> {
    request: &'a Request<'a>,
    /// From the next element on, or from the end of the array.
    rest: &'a str,
    /// How many are read.
    read: usize,
}

impl<'a> Elements<'a> {
    /// Those of an array that has at least one.
    pub(crate) fn of(request: &'a Request<'a>) -> Result<Self, RpcError> {
        let text = request.params_text();
        let Some(inside) = text.trim_start_matches(SPACE).strip_prefix('[') else {
            return Err(request.invalid("expected an array as `params`".to_owned()));
        };
        let rest = inside.trim_start_matches(SPACE);
        if rest.starts_with(']') {
            return Err(request.invalid("`params` is empty: name at least one listener".to_owned()));
        }
        Ok(Self { request, rest, read: 0 })
    }

    /// Whether all are read.
    pub(crate) fn is_empty(&self) -> bool {
        self.rest.starts_with(']')
    }

    /// Reads the next one. An error says which one it is.
    pub(crate) fn next<T: Deserialize<'a>>(&mut self) -> Result<T, RpcError> {
        // One value; the rest is looked at when it is its turn.
        let mut values = serde_json::Deserializer::from_str(self.rest).into_iter();
        let value = values.next().unwrap_or_else(|| Err(serde::de::Error::custom("there is none")));
        let value = value.map_err(|error: serde_json::Error| {
            self.request.invalid(format!("params[{}]: {}", self.read, without_place(&error)))
        })?;
        let rest =
            self.rest.get(values.byte_offset()..).unwrap_or_default().trim_start_matches(SPACE);
        self.rest = rest.strip_prefix(',').unwrap_or(rest).trim_start_matches(SPACE);
        self.read += 1;
        Ok(value)
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
