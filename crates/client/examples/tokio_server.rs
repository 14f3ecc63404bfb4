//! A tokio server that takes over a listener from whoever has it, and hands it on.

fn main() {}
