//! Members of a message that are left out.

/// Whether a value is what its absence means, so that it is not written.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
