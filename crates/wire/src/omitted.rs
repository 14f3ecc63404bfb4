//! Members that are left out of a message.

/// Whether a value equals its default, and so is not written.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
