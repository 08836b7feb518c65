//! No circle between the top-level modules of a crate: the test over all crates of the workspace.
//!
//! A node is a file or folder of `src`. An edge is a path that leads from one into another: in a `use`, in code, in an
//! attribute or in the words of a macro, by way of `crate`, of `super`, or of a name that the root of the crate re-exports.
//! The root is a node as well, for what it defines itself: it uses all modules, so that none may use it. What is compiled
//! for tests alone does not count.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{Span, TokenStream, TokenTree};
use syn::{
    Attribute, Item, ItemMod, UseTree,
    visit::{
        Visit, visit_attribute, visit_file, visit_impl_item_fn, visit_item, visit_item_mod, visit_macro, visit_path,
    },
};

use crate::{edges::metadata, workspace::shown};

/// For each node those that it uses, each with the first place where it does.
type Graph = BTreeMap<String, BTreeMap<String, String>>;

/// Reads the modules of a crate from its root file on.
fn read(root: &Path) -> Graph {
    let file = parse(root);
    let mut names = BTreeMap::new();
    for item in file.items.iter().filter(|item| !is_for_tests(attributes(item))) {
        match item {
            Item::Mod(module) => _ = names.insert(module.ident.to_string(), module.ident.to_string()),
            Item::Use(re_exports) => leaves(&re_exports.tree, &mut Vec::new(), &mut |path, name| {
                let module = path.iter().find(|(segment, _)| segment != "crate" && segment != "self");
                names.extend(module.map(|(module, _)| (name.to_owned(), module.clone())));
            }),
            _ => names.extend(name_of(item).map(|name| (name, ROOT.to_owned()))),
        }
    }
    let mut graph = Graph::new();
    for (name, module) in &names {
        if name == module {
            graph.entry(ROOT.to_owned()).or_default().insert(module.clone(), shown(root));
        }
    }
    let mut reader = Reader { names, graph, file: root.to_owned(), folder: folder_of(root), module: Vec::new() };
    reader.visit_file(&file);
    reader.graph
}

const ROOT: &str = "the root of the crate";

struct Reader {
    /// What the names at the root of the crate belong to.
    names: BTreeMap<String, String>,
    graph: Graph,
    file: PathBuf,
    /// Where the files of modules in it are.
    folder: PathBuf,
    /// Where we are.
    module: Vec<String>,
}

impl Reader {
    /// Notes where a path of these words leads to, if it leads out of the module at the top.
    fn path(&mut self, words: &[(String, Span)]) {
        let supers = words.iter().take_while(|(word, _)| word == "super").count();
        let next = match words.first().map(|(word, _)| word.as_str()) {
            Some("crate") => words.get(1),
            Some("super") if supers == self.module.len() => words.get(supers),
            _ => None,
        };
        let (Some(from), Some((name, span))) = (self.module.first(), next) else { return };
        // Else it is a name of another crate.
        if let Some(to) = self.names.get(name).filter(|to| *to != from) {
            let place = format!("{}:{}", shown(&self.file), span.start().line);
            self.graph.entry(from.clone()).or_default().entry(to.clone()).or_insert(place);
        }
    }

    /// Of words that are not parsed, as those of a macro.
    fn tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<_> = tokens.into_iter().collect();
        for (at, token) in tokens.iter().enumerate() {
            match token {
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Ident(word) if *word == "crate" || *word == "super" => {
                    let words = tokens[at..].iter().take_while(|token| match token {
                        TokenTree::Ident(_) => true,
                        TokenTree::Punct(punct) => punct.as_char() == ':',
                        _ => false,
                    });
                    let words: Vec<_> = words
                        .filter_map(|token| match token {
                            TokenTree::Ident(word) => Some((word.to_string(), word.span())),
                            _ => None,
                        })
                        .collect();
                    self.path(&words);
                }
                _ => {}
            }
        }
    }
}

impl Visit<'_> for Reader {
    fn visit_item(&mut self, item: &Item) {
        if !is_for_tests(attributes(item)) {
            visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &syn::ImplItemFn) {
        if !is_for_tests(&function.attrs) {
            visit_impl_item_fn(self, function);
        }
    }

    fn visit_item_mod(&mut self, module: &ItemMod) {
        let name = module.ident.to_string();
        let (file, folder) = (self.file.clone(), self.folder.clone());
        self.module.push(name.clone());
        if module.content.is_some() {
            self.folder.push(name);
            visit_item_mod(self, module);
        } else {
            self.file = [folder.join(&name).with_extension("rs"), folder.join(&name).join("mod.rs")]
                .into_iter()
                .find(|file| file.is_file())
                .unwrap_or_else(|| panic!("{}: the file of the module {name} is not found", file.display()));
            self.folder = folder_of(&self.file);
            visit_file(self, &parse(&self.file.clone()));
        }
        self.module.pop();
        (self.file, self.folder) = (file, folder);
    }

    fn visit_item_use(&mut self, item: &syn::ItemUse) {
        leaves(&item.tree, &mut Vec::new(), &mut |path, _| self.path(path));
    }

    fn visit_path(&mut self, path: &syn::Path) {
        let words: Vec<_> =
            path.segments.iter().map(|segment| (segment.ident.to_string(), segment.ident.span())).collect();
        self.path(&words);
        visit_path(self, path);
    }

    fn visit_macro(&mut self, invoked: &syn::Macro) {
        self.tokens(invoked.tokens.clone());
        visit_macro(self, invoked);
    }

    fn visit_attribute(&mut self, attribute: &Attribute) {
        if let syn::Meta::List(list) = &attribute.meta {
            self.tokens(list.tokens.clone());
        }
        visit_attribute(self, attribute);
    }
}

/// Each path of a `use`, with the name that it gets.
fn leaves(tree: &UseTree, path: &mut Vec<(String, Span)>, at: &mut impl FnMut(&[(String, Span)], &str)) {
    let last = |path: &[(String, Span)]| path.last().map_or_else(String::new, |(word, _)| word.clone());
    match tree {
        UseTree::Path(inner) => {
            path.push((inner.ident.to_string(), inner.ident.span()));
            leaves(&inner.tree, path, at);
            path.pop();
        }
        UseTree::Group(group) => group.items.iter().for_each(|inner| leaves(inner, path, at)),
        UseTree::Name(name) if name.ident == "self" => at(path, &last(path)),
        UseTree::Rename(renamed) if renamed.ident == "self" => at(path, &renamed.rename.to_string()),
        UseTree::Name(name) => {
            path.push((name.ident.to_string(), name.ident.span()));
            at(path, &last(path));
            path.pop();
        }
        UseTree::Rename(renamed) => {
            path.push((renamed.ident.to_string(), renamed.ident.span()));
            at(path, &renamed.rename.to_string());
            path.pop();
        }
        UseTree::Glob(_) => at(path, "*"),
    }
}

fn parse(file: &Path) -> syn::File {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Where the files of a file's modules are.
fn folder_of(file: &Path) -> PathBuf {
    let is_root = ["mod.rs", "lib.rs", "main.rs"].iter().any(|name| file.ends_with(name));
    if is_root { file.parent().expect("a file").to_owned() } else { file.with_extension("") }
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    let is_test = |tokens: TokenStream| {
        let words: Vec<_> = tokens.into_iter().map(|token| token.to_string()).collect();
        words[0] == "test" || words[0] == "all" && words[1].contains("test")
    };
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg") && attribute.meta.require_list().is_ok_and(|list| is_test(list.tokens.clone()))
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn name_of(item: &Item) -> Option<String> {
    Some(match item {
        Item::Const(item) => item.ident.to_string(),
        Item::Enum(item) => item.ident.to_string(),
        Item::Fn(item) => item.sig.ident.to_string(),
        Item::Macro(item) => item.ident.as_ref()?.to_string(),
        Item::Static(item) => item.ident.to_string(),
        Item::Struct(item) => item.ident.to_string(),
        Item::Trait(item) => item.ident.to_string(),
        Item::Type(item) => item.ident.to_string(),
        _ => return None,
    })
}

/// A shortest way from each node back to itself, each circle once, as lines that say where each edge is.
fn circles(graph: &Graph) -> Vec<String> {
    let mut circles = BTreeMap::new();
    for start in graph.keys() {
        let mut came_from = BTreeMap::<&str, &str>::new();
        let mut next = VecDeque::from([start.as_str()]);
        while let Some(node) = next.pop_front() {
            for to in graph.get(node).into_iter().flat_map(BTreeMap::keys) {
                if !came_from.contains_key(to.as_str()) {
                    came_from.insert(to, node);
                    next.push_back(to);
                }
            }
        }
        let Some(mut node) = came_from.get(start.as_str()).copied() else { continue };
        let mut way = vec![(node, start.as_str())];
        while node != start {
            let before = came_from[node];
            way.push((before, node));
            node = before;
        }
        way.sort_unstable();
        let lines = way.iter().map(|(from, to)| format!("  {from} uses {to}: {}\n", graph[*from][*to]));
        circles.insert(way.clone(), lines.collect::<String>());
    }
    circles.into_values().collect()
}

#[test]
fn no_crate_has_a_circle_between_its_modules() {
    let mut found = String::new();
    for package in metadata()["packages"].as_array().unwrap() {
        for target in package["targets"].as_array().unwrap() {
            let is_code = |kind: &serde_json::Value| *kind == "lib" || *kind == "bin";
            if target["kind"].as_array().unwrap().iter().any(is_code) {
                for circle in circles(&read(Path::new(target["src_path"].as_str().unwrap()))) {
                    found += &format!("{}, {}:\n{circle}", package["name"], target["name"]);
                }
            }
        }
    }
    assert!(found.is_empty(), "what these have in common belongs below them:\n{found}");
}

#[test]
fn a_circle_is_found_however_its_edges_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let found = || circles(&read(&folder.path().join("lib.rs")));
    let root = "mod one; mod three; mod two; pub use two::inner::{Name as Other}; #[cfg(test)] mod tests;";
    write("lib.rs", root);
    write("one.rs", "use std::fs;\n#[cfg(test)] mod tests { use crate::two::inner; }");
    write("two/mod.rs", "pub mod inner;");
    write("two/inner.rs", "use crate::three; use super::super::one; pub struct Name;");
    write("three.rs", "use self::below::X; mod below { use super::super::one; pub struct X; }");
    assert_eq!(found(), [""; 0], "all arrows run down, and tests do not count");

    for edge in [
        "use crate::two::inner;",
        "use crate::{one::X, three::{self}, two::{inner::{Name}}};",
        "use super::two;",
        "mod deeper { use super::super::two; }",
        "use crate::Other;",
        "fn f() { crate::two::f() }",
        "fn f() { println!(\"{}\", crate::two::f()) }",
        "#[arg(value = crate::two::f)] struct S;",
        "impl crate::two::T for X {}",
        "#[cfg(feature = \"x\")] use crate::two;",
    ] {
        write("one.rs", &format!("\n{edge}"));
        let circles = found();
        let both = |circle: &&String| {
            circle.contains("one.rs:2\n") && circle.contains("two uses one: ") && circle.contains("inner.rs:1\n")
        };
        assert!(circles.iter().any(|circle| both(&circle)), "{edge}: {circles:#?}");
    }

    write("one.rs", "fn f() { crate::defined_there() }");
    assert_eq!(found(), [""; 0], "nothing of that name is there");
    write("lib.rs", &format!("{root} fn defined_there() {{}}"));
    let circles = found();
    assert!(circles[0].contains("one uses the root of the crate: "), "{circles:#?}");
}
