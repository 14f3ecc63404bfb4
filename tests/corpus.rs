//! The fuzz targets without a fuzzer: their seeds, so that known bugs stay fixed, and random inputs
//! derived from them, the same in every run.

use std::panic::catch_unwind;

use bindonce_fuzz::{TARGETS, directory, random, seeds};

/// The number of inputs for each target: one second for the slowest target.
const RANDOM: u64 = 2000;

#[test]
fn every_input_keeps_its_promises() {
    for (name, target) in TARGETS {
        let seeds = seeds(name).unwrap_or_else(|error| panic!("seeds of {name}: {error}"));
        assert!(!seeds.is_empty(), "{name} has no seeds");
        for (path, seed) in &seeds {
            // The seed is named only if it fails.
            let kept = catch_unwind(|| target(seed));
            assert!(kept.is_ok(), "{} breaks a promise of {name}", path.display());
        }
        let seeds: Vec<_> = seeds.into_iter().map(|(_, seed)| seed).collect();
        for number in 0..RANDOM {
            let input = random(&seeds, number);
            let kept = catch_unwind(|| target(&input));
            assert!(kept.is_ok(), "this breaks a promise of {name}: {}", input.escape_ascii());
        }
    }
}

#[test]
fn every_seed_belongs_to_a_target() {
    let there = std::fs::read_dir(directory()).expect("seeds");
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.expect("entry").file_name();
    let mut there: Vec<_> = there.map(name).collect();
    there.sort();
    assert_eq!(there, TARGETS.map(|(name, _)| name));
}
