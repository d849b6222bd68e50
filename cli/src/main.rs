//! The `imprompt` command.
fn main() {}
