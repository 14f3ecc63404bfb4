//! The header that C programs include has what the library has.

#![cfg(test)]

use std::path::Path;

use quote::ToTokens as _;
use syn::{FnArg, Item, Pat, ReturnType};

/// A type of Rust as C writes it, with room for a name.
fn c(ty: &str) -> String {
    let plain = match ty {
        "c_int" => "int ",
        "u64" => "uint64_t ",
        "usize" => "size_t ",
        "c_char" => "char ",
        "Generation" => "struct bindonce_generation ",
        pointer => {
            let (constant, to) = match pointer.strip_prefix("* const ") {
                Some(to) => (true, to),
                None => (false, pointer.strip_prefix("* mut ").expect("a type that C has")),
            };
            return match (constant, to.starts_with('*')) {
                (true, false) => format!("const {}*", c(to)),
                (true, true) => format!("{}const *", c(to)),
                (false, _) => format!("{}*", c(to)),
            };
        }
    };
    plain.to_owned()
}

#[test]
fn the_header_declares_each_function_and_each_constant() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(here.join(path)).expect("a file");
    let header = read("include/bindonce.h").split_whitespace().collect::<Vec<_>>().join(" ");
    let mut seen = 0;
    for item in syn::parse_file(&read("src/lib.rs")).expect("Rust").items {
        let wanted = match item {
            Item::Fn(item) if item.sig.abi.is_some() => {
                let arguments = item.sig.inputs.iter().map(|argument| match argument {
                    FnArg::Typed(typed) => match &*typed.pat {
                        Pat::Ident(name) => {
                            c(&typed.ty.to_token_stream().to_string()) + &name.ident.to_string()
                        }
                        _ => String::new(),
                    },
                    FnArg::Receiver(_) => String::new(),
                });
                let arguments = arguments.collect::<Vec<_>>().join(", ");
                let arguments = if arguments.is_empty() { "void" } else { arguments.as_str() };
                let result = match &item.sig.output {
                    ReturnType::Default => "void ".to_owned(),
                    ReturnType::Type(_, ty) => c(&ty.to_token_stream().to_string()),
                };
                format!("{result}{}({arguments});", item.sig.ident)
            }
            Item::Const(item) => {
                let value = item.expr.to_token_stream().to_string().replace("- ", "-");
                format!("#define {} {value} ", item.ident)
            }
            _ => continue,
        };
        seen += 1;
        assert!(
            header.contains(&wanted),
            "include/bindonce.h lacks `{wanted}`: ./deploy/capi --header makes it anew"
        );
    }
    assert!(seen > 20, "{seen}");
}

#[test]
fn the_header_says_how_long_a_request_may_take() {
    let header = include_str!("../include/bindonce.h");
    let limit = format!("{} seconds for each request", bindonce::DEFAULT_TIMEOUT.as_secs());
    assert!(header.contains(&limit), "include/bindonce.h does not say `{limit}`");
    let preamble = include_str!("../cbindgen.toml");
    assert!(preamble.contains(&limit), "cbindgen.toml does not say `{limit}`");
}
