//! Which descriptors go with which bytes of a reply.
//!
//! The kernel takes at most [`MAX_FDS`] descriptors with one message. The first message carries the
//! whole text of the reply and up to 253 descriptors; each further one carries a single space,
//! which JSON ignores, and up to 253 more.

use std::ops::Range;

use crate::MAX_FDS;

/// A reply that is being sent: gives the next bytes and descriptors to send, and takes how many
/// bytes the kernel took. It holds no descriptors, only their count, so it works with any kind of
/// handle.
///
/// ```
/// # use bindonce_fd::batch::Transmission;
/// let mut reply = Transmission::new(b"{}\n".to_vec(), 300);
/// assert_eq!(reply.next(), Some((&b"{}\n"[..], 0..253)));
/// reply.advance(1); // The descriptors went with the first byte.
/// assert_eq!(reply.next(), Some((&b"}\n"[..], 253..253)));
/// reply.advance(2);
/// assert_eq!(reply.next(), Some((&b" "[..], 253..300)));
/// reply.advance(1);
/// assert_eq!(reply.next(), None);
/// ```
#[derive(Debug, Clone)]
pub struct Transmission {
    text: Vec<u8>,
    written: usize,
    descriptors: usize,
    sent: usize,
}

impl Transmission {
    /// A reply of `text`, which must not be empty, with this many descriptors.
    pub fn new(text: Vec<u8>, descriptors: usize) -> Self {
        Self { text, written: 0, descriptors, sent: 0 }
    }

    /// The bytes to send now, and the range of descriptors that goes with the first byte. `None`
    /// when all is sent.
    pub fn next(&self) -> Option<(&[u8], Range<usize>)> {
        let batch = self.sent..self.descriptors.min(self.sent + MAX_FDS);
        if self.written == 0 {
            Some((&self.text, batch))
        } else if self.written < self.text.len() {
            Some((&self.text[self.written..], self.sent..self.sent))
        } else if batch.is_empty() {
            None
        } else {
            Some((b" ", batch))
        }
    }

    /// Records that the kernel took `count` of the bytes of [`next`](Self::next), and their
    /// descriptors with the first byte.
    pub fn advance(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        let within_text = 0 < self.written && self.written < self.text.len();
        if !within_text {
            self.sent = self.descriptors.min(self.sent + MAX_FDS);
        }
        if self.written < self.text.len() {
            self.written += count;
            if self.written >= self.text.len() {
                // Frees the text early: a reply may wait long for room for its descriptors.
                self.text = Vec::new();
            }
        }
    }

    /// How many descriptors, from the first on, have been handed to the kernel.
    pub fn descriptors_sent(&self) -> usize {
        self.sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_descriptor_goes_once_and_in_order() {
        for count in [0, 1, 252, 253, 254, 506, 507, 10_000] {
            for step in [1, 2, 1000] {
                let mut reply = Transmission::new(b"{\"result\":{}}\n".to_vec(), count);
                let (mut bytes, mut sent) = (Vec::new(), Vec::new());
                while let Some((part, batch)) = reply.next() {
                    let took = part.len().min(step);
                    bytes.extend_from_slice(&part[..took]);
                    assert!(batch.len() <= MAX_FDS);
                    sent.extend(batch);
                    reply.advance(took);
                }
                assert_eq!(sent, (0..count).collect::<Vec<_>>());
                assert_eq!(bytes.trim_ascii_end(), b"{\"result\":{}}");
                assert_eq!(reply.descriptors_sent(), count);
            }
        }
    }
}
