//! Files of a crate that import each other in a circle: to understand one of them, a reader must
//! know all.
//!
//! Read from the sources. `mod` gives the files. An import is a `use`, or a path that begins with
//! `crate`, `super` or a module of the file. A `pub use` of a name that the file itself does not
//! need is a re-export and no import; importing that name imports the file that it leads to. Tests
//! do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use quote::ToTokens as _;
use syn::{Attribute, Item, UseTree, Visibility};

use crate::harness::root;

/// A module by its path from the root of the crate: the file `a/b.rs` is `[a, b]`.
type Module = Vec<String>;

/// The imports and exports of one file.
#[derive(Default)]
struct File {
    /// Imported paths, from the root of the crate.
    imports: Vec<Module>,
    /// Re-exported names, and where they lead.
    exports: BTreeMap<String, Module>,
}

/// The files of one crate.
#[derive(Default)]
struct Files(BTreeMap<Module, (PathBuf, syn::File)>);

fn is_test(attributes: &[Attribute]) -> bool {
    let test = |attribute: &Attribute| {
        attribute.path().is_ident("cfg")
            && attribute.meta.to_token_stream().to_string().contains("test")
    };
    attributes.iter().any(test)
}

impl Files {
    fn of(source: &Path) -> Self {
        let mut files = Self::default();
        let top = ["lib.rs", "main.rs"].into_iter().map(|name| source.join(name));
        let top = top.into_iter().find(|path| path.is_file()).expect("the root of a crate");
        files.add(Module::new(), &top, source);
        files
    }

    fn add(&mut self, module: Module, path: &Path, below: &Path) {
        let text = fs::read_to_string(path).expect("a source");
        let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        for item in &parsed.items {
            let Item::Mod(inner) = item else { continue };
            if inner.content.is_some() || is_test(&inner.attrs) {
                continue;
            }
            let name = inner.ident.to_string();
            let flat = below.join(format!("{name}.rs"));
            let deep = below.join(&name).join("mod.rs");
            let file = if flat.is_file() { flat } else { deep };
            let mut child = module.clone();
            child.push(name.clone());
            self.add(child, &file, &below.join(&name));
        }
        self.0.insert(module, (path.to_owned(), parsed));
    }

    /// The absolute form of a path in a file, from the root of the crate. None if it leads out of
    /// the crate.
    fn absolute(&self, module: &Module, path: &[String]) -> Option<Module> {
        let mut from = module.clone();
        let mut rest = path;
        match path.first()?.as_str() {
            "crate" => {
                from.clear();
                rest = &path[1..];
            }
            "self" => rest = &path[1..],
            "super" => {
                while rest.first().is_some_and(|part| part == "super") {
                    from.pop();
                    rest = &rest[1..];
                }
            }
            child => {
                let mut inner = from.clone();
                inner.push(child.to_owned());
                self.0.contains_key(&inner).then_some(())?;
            }
        }
        from.extend(rest.iter().cloned());
        Some(from)
    }

    fn read(&self, module: &Module, parsed: &syn::File) -> File {
        let mut file = File::default();
        let mut body = String::new();
        let mut uses = Vec::new();
        for item in &parsed.items {
            match item {
                Item::Use(item) => {
                    let private = matches!(item.vis, Visibility::Inherited);
                    let mut paths = Vec::new();
                    flatten(&item.tree, &mut Vec::new(), &mut paths);
                    uses.extend(paths.into_iter().map(|(path, name)| (path, name, private)));
                }
                Item::Mod(item) if item.content.is_none() || is_test(&item.attrs) => {}
                other => {
                    body.push_str(&other.to_token_stream().to_string());
                    body.push('\n');
                }
            }
        }
        let words: BTreeSet<&str> =
            body.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        for (path, name, private) in uses {
            let Some(path) = self.absolute(module, &path) else { continue };
            if private || words.contains(name.as_str()) {
                file.imports.push(path.clone());
            }
            if !private {
                file.exports.insert(name, path);
            }
        }
        file.imports.extend(inline(&body).filter_map(|path| self.absolute(module, &path)));
        file
    }

    /// The file that defines what a path names.
    fn owner(&self, files: &BTreeMap<Module, File>, path: &Module) -> Option<Module> {
        let mut path = path.clone();
        // Longer chains of re-exports do not occur.
        for _ in 0..20 {
            let known = |length: &usize| files.contains_key(&path[..*length]);
            let length = (0..=path.len()).rev().find(known)?;
            let (module, rest) = path.split_at(length);
            let export = rest.first().and_then(|name| files[module].exports.get(name));
            match export.filter(|export| **export != path) {
                Some(export) => {
                    let rest = rest.get(1..).unwrap_or_default();
                    path = export.iter().chain(rest).cloned().collect();
                }
                None => return Some(module.to_vec()),
            }
        }
        None
    }
}

/// Every path of a `use`, and its local name.
fn flatten(tree: &UseTree, before: &mut Module, paths: &mut Vec<(Module, String)>) {
    match tree {
        UseTree::Path(path) => {
            before.push(path.ident.to_string());
            flatten(&path.tree, before, paths);
            before.pop();
        }
        UseTree::Group(group) => {
            group.items.iter().for_each(|tree| flatten(tree, before, paths));
        }
        UseTree::Name(name) if name.ident == "self" => {
            paths.push((before.clone(), before.last().cloned().unwrap_or_default()));
        }
        UseTree::Name(name) => {
            let path = before.iter().cloned().chain([name.ident.to_string()]);
            paths.push((path.collect(), name.ident.to_string()));
        }
        UseTree::Rename(rename) => {
            let path = before.iter().cloned().chain([rename.ident.to_string()]);
            paths.push((path.collect(), rename.rename.to_string()));
        }
        UseTree::Glob(_) => paths.push((before.clone(), "*".to_owned())),
    }
}

/// Paths in the text of a file that may lead to another file; [`Files::absolute`] decides. A
/// visibility (`pub(in crate::...)`) is no import.
fn inline(body: &str) -> impl Iterator<Item = Module> {
    let words: Vec<&str> = body.split_whitespace().collect();
    let mut paths = Vec::new();
    for (index, word) in words.iter().enumerate() {
        let begins = index == 0 || !matches!(words[index - 1], "::" | "(in");
        let leads = words.get(index + 1) == Some(&"::") && word.starts_with(char::is_lowercase);
        if begins && leads {
            let rest = words[index..].chunks(2);
            let parts = rest.map_while(|pair| {
                Some(pair[0].to_owned())
                    .filter(|part| part.chars().all(|c| c.is_alphanumeric() || c == '_'))
            });
            let mut path = Module::new();
            for (count, part) in parts.enumerate() {
                path.push(part);
                if words.get(index + 2 * count + 1) != Some(&"::") {
                    break;
                }
            }
            paths.push(path);
        }
    }
    paths.into_iter()
}

/// The circles among the files of a crate, the largest first.
fn circles(source: &Path) -> Vec<Vec<PathBuf>> {
    let sources = Files::of(source);
    let read = |(module, (_, parsed)): (&Module, &(PathBuf, syn::File))| {
        (module.clone(), sources.read(module, parsed))
    };
    let files: BTreeMap<Module, File> = sources.0.iter().map(read).collect();
    let modules: Vec<&Module> = files.keys().collect();
    let place = |module: &Module| modules.binary_search(&module).ok();
    // First direct imports, then files reached through others.
    let mut reaches = vec![vec![false; modules.len()]; modules.len()];
    for (from, file) in files.values().enumerate() {
        let owners = file.imports.iter().filter_map(|path| sources.owner(&files, path));
        for to in owners.filter_map(|owner| place(&owner)).filter(|to| *to != from) {
            reaches[from][to] = true;
        }
    }
    for through in 0..modules.len() {
        let next = reaches[through].clone();
        for from in reaches.iter_mut().filter(|from| from[through]) {
            from.iter_mut().zip(&next).for_each(|(own, next)| *own |= next);
        }
    }
    let mut circles: Vec<Vec<PathBuf>> = Vec::new();
    let mut seen = vec![false; modules.len()];
    for module in 0..modules.len() {
        if seen[module] || !reaches[module][module] {
            continue;
        }
        let both = |other: &usize| reaches[module][*other] && reaches[*other][module];
        let circle: Vec<usize> = (0..modules.len()).filter(both).collect();
        circle.iter().for_each(|member| seen[*member] = true);
        circles.push(circle.iter().map(|member| sources.0[modules[*member]].0.clone()).collect());
    }
    circles.sort_by_key(|circle| std::cmp::Reverse(circle.len()));
    circles
}

#[test]
fn files_import_each_other_in_no_circle() {
    let crates = fs::read_dir(root().join("crates")).expect("the crates");
    let sources = crates.map(|entry| entry.expect("an entry").path().join("src"));
    let found: Vec<_> = sources.flat_map(|source| circles(&source)).collect();
    assert!(found.is_empty(), "files that import each other in a circle: {found:#?}");
}

#[test]
fn a_circle_is_found_through_names_that_others_give() {
    let directory = std::env::temp_dir().join(format!("bindonce-circles-{}", std::process::id()));
    fs::create_dir_all(directory.join("b")).expect("a directory");
    let write = |name: &str, text: &str| fs::write(directory.join(name), text).expect("a source");
    write("lib.rs", "mod a;\nmod b;\nmod d;\npub use a::A;\n");
    write("a.rs", "use crate::b::C;\npub struct A(C);\n");
    write("b/mod.rs", "mod c;\npub use c::C;\n");
    write(
        "b/c.rs",
        "pub struct C;\nfn f() { let _ = crate::d::D; }\n#[cfg(test)]\nmod tests { use crate::A; }\n",
    );
    write("d.rs", "pub struct D;\n");
    assert_eq!(circles(&directory), Vec::<Vec<PathBuf>>::new());
    write("d.rs", "use super::A;\npub struct D;\nimpl D { fn f(_: A) {} }\n");
    let expected = ["a.rs", "b/c.rs", "d.rs"].map(|name| directory.join(name));
    assert_eq!(circles(&directory), [expected]);
    write("d.rs", "pub struct D;\n");
    write("b/mod.rs", "mod c;\npub use c::C;\npub struct B;\nfn f() { c::g(); }\n");
    write("b/c.rs", "use super::B;\npub struct C;\npub fn g() -> B { B }\n");
    let expected = ["b/mod.rs", "b/c.rs"].map(|name| directory.join(name));
    assert_eq!(circles(&directory), [expected]);
    fs::remove_dir_all(&directory).expect("removed");
}
