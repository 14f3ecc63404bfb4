//! Lists the public items of this crate, following its `pub use` into the crates below.
//!
//! It supports what this workspace uses: modules in files of their own, `impl` blocks beside the
//! type, no macro that makes public items. Anything else is an error, not silence.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use quote::ToTokens;
use syn::{Attribute, Fields, ImplItem, Item, ItemImpl, Type, UseTree, Visibility};

/// Where the sources are, from this crate's directory.
const CRATES: [(&str, &str); 3] =
    [("bindonce", "src"), ("bindonce_core", "../core/src"), ("bindonce_wire", "../wire/src")];

/// The public interface.
#[derive(Default)]
pub(crate) struct Listing {
    /// One line for each item, field, variant, function and implemented trait.
    pub(crate) lines: BTreeSet<String>,
    /// Types that a user may build or match in full.
    pub(crate) closed: BTreeSet<String>,
    /// The names of our types that a user can name.
    pub(crate) exported: BTreeSet<String>,
    /// The names of our types that the lines mention.
    pub(crate) mentioned: BTreeSet<String>,
    /// The names of types that have an `impl` block in another file than their own, which is
    /// not listed.
    pub(crate) elsewhere: BTreeSet<String>,
    /// The names of all public types of the crates.
    ours: BTreeSet<String>,
}

/// A module: its crate, and its path there.
#[derive(Clone, PartialEq, Eq)]
struct Module {
    krate: String,
    path: Vec<String>,
}

/// An item by the path that users give it, and the feature that it needs.
struct Public {
    path: String,
    feature: Option<String>,
}

impl Listing {
    pub(crate) fn of_this_crate() -> Self {
        let mut listing = Self::default();
        for (_, directory) in CRATES {
            let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
            listing.note_types(&directory);
        }
        let root = Module { krate: "bindonce".to_owned(), path: Vec::new() };
        listing.module(&root, &Public { path: "bindonce".to_owned(), feature: None });
        listing
    }

    /// Notes the public types of a crate, exported or not.
    fn note_types(&mut self, directory: &Path) {
        for entry in std::fs::read_dir(directory).expect("a directory of sources").flatten() {
            let path = entry.path();
            if path.is_dir() {
                self.note_types(&path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                self.note_types_of(&items(&path));
            }
        }
    }

    fn note_types_of(&mut self, items: &[Item]) {
        let mut here = BTreeSet::new();
        for item in items {
            let (ident, visibility) = match item {
                Item::Struct(item) => (&item.ident, &item.vis),
                Item::Enum(item) => (&item.ident, &item.vis),
                _ => continue,
            };
            here.insert(ident.to_string());
            if public(visibility) {
                self.ours.insert(ident.to_string());
            }
        }
        let blocks = items.iter().filter_map(|item| match item {
            // Another crate's type is written with its module here, as in `io::Error`.
            Item::Impl(block) => match &*block.self_ty {
                Type::Path(at) if at.path.segments.len() == 1 => self_type(block),
                _ => None,
            },
            _ => None,
        });
        self.elsewhere.extend(blocks.filter(|name| !here.contains(name)));
    }

    /// Lists the public items of a module.
    fn module(&mut self, module: &Module, at: &Public) {
        for item in module.items().iter() {
            let below = |name: &str, attributes: &[Attribute]| Public {
                path: format!("{}::{name}", at.path),
                feature: at.feature.clone().or_else(|| feature(attributes)),
            };
            match item {
                Item::Mod(item) if public(&item.vis) => {
                    let name = item.ident.to_string();
                    self.module(&module.child(&name), &below(&name, &item.attrs));
                }
                Item::Use(item) if public(&item.vis) => {
                    for leaf in leaves(&item.tree) {
                        let name = leaf.last().expect("a name").clone();
                        self.item(&module.find(&leaf), &name, &below(&name, &item.attrs));
                    }
                }
                item => {
                    if let Some((name, attributes)) = defined(item) {
                        self.item(module, &name, &below(&name, attributes));
                    }
                }
            }
        }
    }

    /// Lists one item that is defined in this module, and its `impl` blocks there.
    fn item(&mut self, module: &Module, name: &str, at: &Public) {
        let items = module.items();
        let is_it = |item: &&Item| defined(item).is_some_and(|(defined, _)| defined == name);
        let item = items.iter().find(is_it).expect("the item is public where it is defined");
        self.exported.insert(name.to_owned());
        match item {
            Item::Struct(item) => {
                let extra = marks(&item.attrs);
                let all = item.fields.iter().all(|field| public(&field.vis));
                let (kind, generics) = (
                    if all { "struct" } else { "struct with private fields" },
                    text(&item.generics),
                );
                self.say(at, &format!("{generics}: {extra}pub {kind}"));
                if all && extra.is_empty() {
                    self.closed.insert(at.path.clone());
                }
                self.derives(at, &item.attrs);
                for (index, field) in
                    item.fields.iter().enumerate().filter(|(_, field)| public(&field.vis))
                {
                    let field_name =
                        field.ident.as_ref().map_or_else(|| index.to_string(), ToString::to_string);
                    self.say(at, &format!("::{field_name}: pub {}", text(&field.ty)));
                }
            }
            Item::Enum(item) => {
                let extra = marks(&item.attrs);
                self.say(at, &format!("{}: {extra}pub enum", text(&item.generics)));
                if extra.is_empty() {
                    self.closed.insert(at.path.clone());
                }
                self.derives(at, &item.attrs);
                for variant in &item.variants {
                    let extra = marks(&variant.attrs);
                    if matches!(variant.fields, Fields::Named(_)) && extra.is_empty() {
                        self.closed.insert(format!("{}::{}", at.path, variant.ident));
                    }
                    let fields: Vec<_> = variant
                        .fields
                        .iter()
                        .map(|field| {
                            let name = field.ident.as_ref().map(|name| format!("{name}: "));
                            name.unwrap_or_default() + &text(&field.ty)
                        })
                        .collect();
                    self.say(
                        at,
                        &format!("::{}: {extra}variant({})", variant.ident, fields.join(", ")),
                    );
                }
            }
            Item::Fn(item) => self.say(at, &format!(": pub {}", text(&item.sig))),
            Item::Const(item) => self.say(at, &format!(": pub const {}", text(&item.ty))),
            Item::Type(item) => self.say(at, &format!(": pub type {}", text(&item.ty))),
            item => panic!("{}: the lister does not know this item: {}", at.path, text(item)),
        }
        for item in items.iter() {
            if let Item::Impl(block) = item
                && (self_type(block) == Some(name.to_owned()) || self.converts(block, name))
            {
                self.implemented(block, at);
            }
        }
    }

    /// Whether the block converts this type into a type that is not ours, as
    /// `From<Timestamp> for SystemTime`.
    fn converts(&self, block: &ItemImpl, name: &str) -> bool {
        let of = block.trait_.as_ref().map(|(of, _)| text(of)).unwrap_or_default();
        let ours = self_type(block).is_some_and(|name| self.ours.contains(&name));
        !ours && of.ends_with(&format!("<{name}>"))
    }

    fn implemented(&mut self, block: &ItemImpl, at: &Public) {
        let at = &Public {
            path: at.path.clone(),
            feature: feature(&block.attrs).or_else(|| at.feature.clone()),
        };
        let generics = text(&block.generics);
        let bounds =
            block.generics.where_clause.as_ref().map(|bounds| format!(" {}", text(bounds)));
        let bounds = bounds.unwrap_or_default();
        let full = text(&block.self_ty);
        if let Some((of, _)) = &block.trait_ {
            self.say(at, &format!(": impl{generics} {} for {full}{bounds}", text(of)));
            for item in &block.items {
                if let ImplItem::Type(item) = item {
                    self.say(at, &format!(" as {}: {} = {}", text(of), item.ident, text(&item.ty)));
                }
            }
            return;
        }
        let of = if generics.is_empty() { String::new() } else { format!("impl{generics} ") };
        // A block for one of several types, such as Acceptor<TcpListener>.
        let of = if generics.is_empty() && full.contains('<') { format!("{full} ") } else { of };
        for item in &block.items {
            match item {
                ImplItem::Fn(item) if public(&item.vis) => {
                    let at = &Public {
                        path: at.path.clone(),
                        feature: feature(&item.attrs).or_else(|| at.feature.clone()),
                    };
                    self.say(
                        at,
                        &format!("::{}: {of}pub {}{bounds}", item.sig.ident, text(&item.sig)),
                    );
                }
                ImplItem::Const(item) if public(&item.vis) => {
                    self.say(at, &format!("::{}: pub const {}", item.ident, text(&item.ty)));
                }
                _ => {}
            }
        }
    }

    fn derives(&mut self, at: &Public, attributes: &[Attribute]) {
        for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("derive")) {
            attribute
                .parse_nested_meta(|derived| {
                    self.say(at, &format!(": derive {}", text(&derived.path)));
                    Ok(())
                })
                .expect("derive takes paths");
        }
    }

    fn say(&mut self, at: &Public, what: &str) {
        let feature = at.feature.as_ref().map(|feature| format!(" [feature {feature}]"));
        self.lines.insert(format!("{}{what}{}", at.path, feature.unwrap_or_default()));
        let types = what.split_once(": ").map_or(what, |(_, types)| types);
        let words = types.split(|c: char| !c.is_alphanumeric() && c != '_');
        let ours = words.filter(|word| self.ours.contains(*word)).map(str::to_owned);
        self.mentioned.extend(ours);
    }
}

impl Module {
    fn child(&self, name: &str) -> Self {
        let mut path = self.path.clone();
        path.push(name.to_owned());
        Self { krate: self.krate.clone(), path }
    }

    fn file(&self) -> PathBuf {
        let known: BTreeMap<_, _> = CRATES.into_iter().collect();
        let directory = known.get(self.krate.as_str()).expect("one of our crates");
        let mut path = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
        if self.path.is_empty() {
            return path.join("lib.rs");
        }
        path.extend(&self.path);
        let file = path.with_extension("rs");
        if file.exists() { file } else { path.join("mod.rs") }
    }

    fn items(&self) -> Rc<[Item]> {
        items(&self.file())
    }

    /// The module that defines the item that a `use` here names.
    fn find(&self, path: &[String]) -> Self {
        let (name, modules) = path.split_last().expect("a path");
        let mut module = self.clone();
        for (index, segment) in modules.iter().enumerate() {
            module = match segment.as_str() {
                "crate" => Self { krate: module.krate, path: Vec::new() },
                "self" => module,
                segment if index == 0 && CRATES.iter().any(|(krate, _)| *krate == segment) => {
                    Self { krate: segment.to_owned(), path: Vec::new() }
                }
                segment => module.child(segment),
            };
        }
        let items = module.items();
        if items.iter().any(|item| defined(item).is_some_and(|(defined, _)| defined == *name)) {
            return module;
        }
        let again = items.iter().filter_map(|item| match item {
            Item::Use(item) if public(&item.vis) => Some(leaves(&item.tree)),
            _ => None,
        });
        let leaf = again.flatten().find(|leaf| leaf.last() == Some(name));
        module.find(&leaf.expect("it is public where it is used from"))
    }
}

/// The paths that a `use` names.
fn leaves(tree: &UseTree) -> Vec<Vec<String>> {
    match tree {
        UseTree::Path(path) => {
            let below = leaves(&path.tree);
            below.into_iter().map(|leaf| [vec![path.ident.to_string()], leaf].concat()).collect()
        }
        UseTree::Name(name) => vec![vec![name.ident.to_string()]],
        UseTree::Group(group) => group.items.iter().flat_map(leaves).collect(),
        UseTree::Rename(_) | UseTree::Glob(_) => panic!("the lister does not know {}", text(tree)),
    }
}

/// The name and the attributes of a public item that has a name.
fn defined(item: &Item) -> Option<(String, &[Attribute])> {
    let (visibility, name, attributes) = match item {
        Item::Struct(item) => (&item.vis, &item.ident, &item.attrs),
        Item::Enum(item) => (&item.vis, &item.ident, &item.attrs),
        Item::Fn(item) => (&item.vis, &item.sig.ident, &item.attrs),
        Item::Const(item) => (&item.vis, &item.ident, &item.attrs),
        Item::Trait(item) => (&item.vis, &item.ident, &item.attrs),
        Item::Type(item) => (&item.vis, &item.ident, &item.attrs),
        Item::Static(item) => (&item.vis, &item.ident, &item.attrs),
        Item::Union(item) => (&item.vis, &item.ident, &item.attrs),
        _ => return None,
    };
    public(visibility).then(|| (name.to_string(), attributes.as_slice()))
}

/// The items of a file. Each file is read once.
fn items(path: &Path) -> Rc<[Item]> {
    thread_local! {
        static READ: RefCell<BTreeMap<PathBuf, Rc<[Item]>>> = RefCell::default();
    }
    READ.with_borrow_mut(|read| {
        let items = read.entry(path.to_owned()).or_insert_with(|| {
            let text = std::fs::read_to_string(path).expect("a source file");
            syn::parse_file(&text).expect("Rust").items.into()
        });
        Rc::clone(items)
    })
}

fn public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn self_type(block: &ItemImpl) -> Option<String> {
    let Type::Path(path) = &*block.self_ty else { return None };
    path.path.segments.last().map(|segment| segment.ident.to_string())
}

/// The attributes of a type that matter to its users.
fn marks(attributes: &[Attribute]) -> &'static str {
    let open = attributes.iter().any(|attribute| attribute.path().is_ident("non_exhaustive"));
    if open { "non_exhaustive " } else { "" }
}

/// The feature that an item needs.
fn feature(attributes: &[Attribute]) -> Option<String> {
    let cfg = attributes.iter().find(|attribute| attribute.path().is_ident("cfg"))?;
    let condition = text(&cfg.meta);
    condition.split('"').nth(1).map(str::to_owned)
}

/// Tokens as a person writes them.
fn text(tokens: &(impl ToTokens + ?Sized)) -> String {
    let mut text = tokens.to_token_stream().to_string();
    let tidier = [
        (" :: ", "::"),
        (":: ", "::"),
        (" ::", "::"),
        (" < ", "<"),
        ("< ", "<"),
        (" <", "<"),
        (" >", ">"),
        (" ,", ","),
        (" : ", ": "),
        (" (", "("),
        ("( ", "("),
        (" )", ")"),
        ("& ", "&"),
        ("->(", "-> ("),
        ("[ ", "["),
        (" ]", "]"),
        (" ;", ";"),
        ("->impl", "-> impl"),
        (",>", ">"),
        (",)", ")"),
        ("(mut self", "(self"),
        ("? Sized", "?Sized"),
    ];
    for (from, to) in tidier {
        text = text.replace(from, to);
    }
    text
}
