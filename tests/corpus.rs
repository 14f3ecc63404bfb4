//! The seeds of the fuzz targets, replayed without a fuzzer: what was found once stays found.

use crate::harness::root;

#[test]
fn every_seed_keeps_its_promises() {
    let seeds = root().join("fuzz/seeds");
    let mut known: Vec<String> = Vec::new();
    for (name, target) in bindonce_fuzzing::TARGETS {
        known.push(name.to_owned());
        let files: Vec<_> = std::fs::read_dir(seeds.join(name))
            .unwrap_or_else(|error| panic!("seeds of {name}: {error}"))
            .map(|entry| entry.expect("entry").path())
            .collect();
        assert!(!files.is_empty(), "{name} has no seeds");
        for file in files {
            // Named only if it fails.
            let seed = std::fs::read(&file).expect("seed");
            let kept = std::panic::catch_unwind(|| target(&seed));
            assert!(kept.is_ok(), "{} breaks a promise of {name}", file.display());
        }
    }
    let mut there: Vec<String> = std::fs::read_dir(&seeds)
        .expect("seeds")
        .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    there.sort();
    assert_eq!(there, known, "each directory of fuzz/seeds belongs to a target");
}
