//! One fuzz target. Under cargo-fuzz (tests/fuzz/run) libFuzzer feeds the target that BINDONCE_FUZZ names. Built as
//! usual it needs no fuzzer: `bindonce-fuzz TARGET FILE...` gives it these files, and without a file random inputs
//! until it is ended.

#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    static TARGET: std::sync::LazyLock<bindonce_fuzz::Target> = std::sync::LazyLock::new(|| {
        let name = std::env::var("BINDONCE_FUZZ").unwrap_or_default();
        bindonce_fuzz::target(&name).expect("BINDONCE_FUZZ names a target")
    });
    TARGET(data);
});

#[cfg(not(fuzzing))]
fn main() -> std::io::Result<()> {
    use std::io::Error;

    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_default();
    let target = bindonce_fuzz::target(&name).ok_or_else(|| {
        let names: Vec<_> = bindonce_fuzz::TARGETS.iter().map(|(name, _)| *name).collect();
        Error::other(format!("no target {name:?}: choose one of {}", names.join(", ")))
    })?;
    let files: Vec<String> = arguments.collect();
    for file in &files {
        println!("{file}");
        target(&std::fs::read(file)?);
    }
    if files.is_empty() {
        let seeds: Vec<_> =
            bindonce_fuzz::seeds(&name)?.into_iter().map(|(_, seed)| seed).collect();
        let begun = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let first = u64::try_from(begun.as_nanos()).unwrap_or_default();
        for number in first.. {
            // What is printed last is the input that breaks a promise.
            let input = bindonce_fuzz::random(&seeds, number);
            if std::panic::catch_unwind(|| target(&input)).is_err() {
                return Err(Error::other(format!(
                    "input {number}: {:?}",
                    input.escape_ascii().to_string()
                )));
            }
        }
    }
    Ok(())
}
