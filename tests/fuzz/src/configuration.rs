//! A user's haproxy configuration, and a template of one.

use bindonce_haproxy::config::Answers;
use bindonce_haproxy::config::reader::{self, Unset};

use crate::one::{render, variables};

/// Renders one file, as it is and as a template. Its copy has the same lines under the same numbers,
/// each binding has a variable, and rendered once more it binds nothing by an address.
pub(crate) fn configuration(data: &[u8]) {
    let haproxies = [
        ("a.cfg", Unset::Empty, false),
        ("a.cfg", Unset::Joined, true),
        ("a.cfg", Unset::NoWord, true),
        ("a.cfg.erb", Unset::Empty, false),
    ];
    for (path, unset, discovery) in haproxies {
        let answers = Answers { unset, discovery, ..Answers::default() };
        let Ok(rendering) = render(path, data, variables(), &answers) else { continue };
        let copy = rendering.files.first().map(|file| file.text.clone()).unwrap_or_default();
        assert_eq!(reader::lines(&copy).count(), reader::lines(data).count(), "lines of the copy");
        let covered = rendering.variables.iter().flat_map(|variable| variable.bindings.clone());
        assert!(covered.eq(0..rendering.bindings.len()), "a variable for each binding");
        for binding in &rendering.bindings {
            let _ = binding.listener.key();
        }

        let numbers: Vec<i32> = (100..).take(rendering.bindings.len()).collect();
        let mut environment = variables();
        for (name, value) in rendering.environment(&numbers) {
            environment.insert(name.into_bytes(), value.into_bytes());
        }
        let again =
            render("a.cfg", &copy, environment, &answers).expect("the copy of a good one is good");
        assert_eq!(again.bindings, [], "the copy binds nothing by itself");
    }
}
