//! The two sides of a comparison as git trees, and their programs.
//!
//! Both are built in one worktree under the target folder, one after the other: the same paths, toolchain, flags and
//! dependencies, and what the two have in common is built once. The user's own working tree is only read.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    programs::{self, Built},
    workspace::{root, shown, target_folder},
};

/// How many builds are kept for the next time.
const KEPT: usize = 6;

/// Files of a side, as git knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tree {
    /// The object's name.
    pub(super) id: String,
    /// What people call it.
    pub(super) label: String,
    /// The commit that it is, if it is one, and when that was made, in seconds since 1970.
    pub(super) commit: Option<(String, i64)>,
}

/// What a reference names.
pub(super) fn resolve(repository: &Path, reference: &str) -> Result<Tree> {
    in_repository(repository)?;
    let commit =
        git(repository, ["rev-parse", "--verify", "--quiet", "--end-of-options", &format!("{reference}^{{commit}}")])
            .ok()
            .with_context(|| {
                format!("{reference:?} is not a commit here: name a branch, tag or commit that `git log` knows")
            })?;
    let short: String = commit.chars().take(10).collect();
    let label = if commit.starts_with(reference) { short } else { format!("{reference} ({short})") };
    let id = git(repository, ["rev-parse", &format!("{commit}^{{tree}}")])?;
    Ok(Tree { id, label, commit: Some(dated(repository, commit)?) })
}

fn dated(repository: &Path, commit: String) -> Result<(String, i64)> {
    let at = git(repository, ["show", "--no-patch", "--format=%ct", &commit])?;
    Ok((commit, at.parse().context("git does not say when a commit was made")?))
}

/// The working tree as it is, with what is not committed, and without what is ignored.
pub(super) fn working_tree(repository: &Path) -> Result<Tree> {
    in_repository(repository)?;
    let id = snapshot(repository)?;
    let parse = |name| git(repository, ["rev-parse", "--verify", "--quiet", name]).ok();
    let head = parse("HEAD").zip(parse("HEAD^{tree}"));
    let label = match &head {
        Some((commit, tree)) if *tree == id => format!("the working tree, which is {}", &commit[..10]),
        Some((commit, _)) => format!("the working tree, {} with changes", &commit[..10]),
        None => "the working tree".into(),
    };
    let is_it = head.filter(|(_, tree)| *tree == id);
    let commit = is_it.map(|(commit, _)| dated(repository, commit)).transpose()?;
    Ok(Tree { id, label, commit })
}

/// Writes what lies in a worktree as a tree, by an index of its own: neither the files nor the user's index change.
pub(super) fn snapshot(worktree: &Path) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let index = folder.path().join("index");
    let with_index = |arguments: &[&str]| {
        let mut command = git_command(worktree, arguments);
        output(command.env("GIT_INDEX_FILE", &index))
    };
    if git(worktree, ["rev-parse", "--verify", "--quiet", "HEAD"]).is_ok() {
        with_index(&["read-tree", "HEAD"])?;
    }
    with_index(&["add", "--all"])?;
    with_index(&["write-tree"])
}

fn in_repository(folder: &Path) -> Result<()> {
    ensure!(
        git(folder, ["rev-parse", "--is-inside-work-tree"]).is_ok_and(|inside| inside == "true"),
        "this is not a git repository, so there is nothing to compare with"
    );
    Ok(())
}

fn git_command(folder: &Path, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new("git");
    // What a hook or an alias may have set is about another tree.
    for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        command.env_remove(name);
    }
    command.arg("-C").arg(folder).args(arguments);
    command
}

fn git(folder: &Path, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<String> {
    output(&mut git_command(folder, arguments))
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().context("cannot run git")?;
    if !output.status.success() {
        let line = command.get_args().map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ");
        bail!("git {line}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}

/// A worktree in which sides are built. It is gone when this is dropped.
pub(super) struct Worktree {
    repository: PathBuf,
    path: PathBuf,
}

impl Worktree {
    /// An empty one of this repository, in a place that is always the same, so that what is built of the same files is the
    /// same.
    pub(super) fn new() -> Result<Self> {
        Self::of(root(), &target_folder().join("compare"))
    }

    fn of(repository: &Path, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let folder = folder.canonicalize()?;
        let worktree = Self { repository: repository.to_owned(), path: folder.join("tree") };
        // One that was killed may have left its own.
        worktree.remove();
        let add = ["worktree", "add", "--quiet", "--detach", "--no-checkout"].map(OsStr::new).into_iter();
        git(repository, add.chain([worktree.path.as_os_str(), OsStr::new("HEAD")]))
            .context("cannot make a worktree to build in")?;
        Ok(worktree)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn remove(&self) {
        // Whether there was one or not.
        let remove = [OsStr::new("worktree"), "remove".as_ref(), "--force".as_ref(), self.path.as_os_str()];
        _ = git(&self.repository, remove);
        _ = fs::remove_dir_all(&self.path);
        _ = git(&self.repository, ["worktree", "prune"]);
    }

    /// Puts the files of a tree there. Those that are there already are not touched, so that they are not built again.
    pub(super) fn check_out(&self, tree: &Tree) -> Result<()> {
        git(&self.path, ["read-tree", "--reset", "-u", &tree.id]).map(drop)
    }

    /// The program of a side, built unless it was built before.
    pub(super) fn build(&self, tree: &Tree) -> Result<Built> {
        let folder = built_folder(&key(tree)?);
        if let Some(built) = kept(&folder) {
            // The newest are kept longest.
            _ = fs::File::open(folder.join(WHOLE)).and_then(|file| file.set_modified(std::time::SystemTime::now()));
            return Ok(built);
        }
        eprintln!("building {} (the first time takes some minutes)", tree.label);
        self.check_out(tree)?;
        self.build_as_it_is(&folder).with_context(|| format!("cannot build {}", tree.label))
    }

    /// The same once more, whether or not it was built before: every crate of the workspace, from files that look new.
    pub(super) fn build_again(&self, tree: &Tree) -> Result<Built> {
        eprintln!("building {} a second time", tree.label);
        self.check_out(tree)?;
        let files = git(&self.path, ["ls-files", "-z", "*.rs", "*.toml", "*.wit"])?;
        let now = std::time::SystemTime::now();
        for file in files.split('\0').filter(|file| !file.is_empty()) {
            fs::File::options().append(true).open(self.path.join(file))?.set_modified(now)?;
        }
        self.build_as_it_is(&built_folder(&again(&key(tree)?)))
    }

    fn build_as_it_is(&self, folder: &Path) -> Result<Built> {
        ensure!(
            self.path.join("benches/Cargo.toml").exists(),
            "it has no benchmarks: there is no benches/Cargo.toml in it"
        );
        let built = programs::build(&self.path)?;
        _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder)?;
        for (n, link) in built.links.iter().enumerate() {
            fs::copy(link, folder.join(format!("{LINK}{n}")))
                .with_context(|| format!("cannot keep the program in {}", shown(folder)))?;
        }
        fs::write(folder.join(WHOLE), "")?;
        forget_old();
        kept(folder).context("what was just built is gone")
    }
}

impl Drop for Worktree {
    fn drop(&mut self) {
        self.remove();
    }
}

/// A file beside links that are all there.
const WHOLE: &str = ".whole";

fn built_folder(key: &str) -> PathBuf {
    target_folder().join("compare/built").join(key)
}

/// What no benchmark is built of, below the root.
const APART: [&str; 7] = [".ci/", ".github/", "docs/", "examples/", "fuzz/", "stress/", "xtask/"];

/// What stands for the files of a tree that are wanted.
fn files(tree: &Tree, wanted: impl Fn(&str) -> bool) -> Result<blake3::Hasher> {
    let mut all = blake3::Hasher::new();
    for line in git(root(), ["ls-tree", "-r", &tree.id])?.lines() {
        let path = line.split_once('\t').map_or(line, |(_, path)| path);
        if !path.ends_with(".md") && wanted(path) {
            all.update(line.as_bytes());
        }
    }
    Ok(all)
}

fn is_built(path: &str) -> bool {
    !APART.iter().any(|folder| path.starts_with(folder))
}

/// What decides how a comparison ends, below `xtask/src/compare`.
const JUDGES: [&str; 4] = ["measure.rs", "outcome.rs", "statistics.rs", "verdict.rs"];

/// What stands for all that is built, and for what judges it.
pub(super) fn built_and_judged(tree: &Tree) -> Result<String> {
    let judges = |path: &str| path.strip_prefix("xtask/src/compare/").is_some_and(|name| JUDGES.contains(&name));
    Ok(files(tree, |path| is_built(path) || judges(path))?.finalize().to_hex().to_string())
}

/// All that decides what is built.
fn key(tree: &Tree) -> Result<String> {
    let mut all = files(tree, is_built)?;
    let rustc = Command::new("rustc").arg("-vV").current_dir(root()).output();
    all.update(&rustc.map(|output| output.stdout).unwrap_or_default());
    for (name, value) in env::vars_os() {
        let name = name.to_string_lossy();
        if name.contains("RUSTFLAGS") || name.starts_with("CARGO_PROFILE") || name.starts_with("CARGO_BUILD") {
            all.update(name.as_bytes()).update(value.as_encoded_bytes());
        }
    }
    Ok(all.finalize().to_hex()[..16].to_owned())
}

fn again(key: &str) -> String {
    blake3::hash(format!("{key} again").as_bytes()).to_hex()[..16].to_owned()
}

/// What the names of a program's links begin with.
const LINK: &str = "link";

fn kept(folder: &Path) -> Option<Built> {
    if !folder.join(WHOLE).exists() {
        return None;
    }
    let links: Vec<_> = (0..).map(|n| folder.join(format!("{LINK}{n}"))).take_while(|link| link.exists()).collect();
    (!links.is_empty()).then_some(Built { links })
}

fn forget_old() {
    let Ok(entries) = fs::read_dir(target_folder().join("compare/built")) else { return };
    let mut folders: Vec<_> = entries
        .filter_map(|entry| {
            let folder = entry.ok()?.path();
            let used = fs::metadata(folder.join(WHOLE)).and_then(|whole| whole.modified()).ok();
            Some((used, folder))
        })
        .collect();
    folders.sort();
    let old = folders.len().saturating_sub(KEPT);
    for (_, folder) in folders.into_iter().take(old) {
        _ = fs::remove_dir_all(folder);
    }
}

/// Which benchmark sources differ between two trees.
pub(super) fn differing_benchmarks(one: &Tree, other: &Tree) -> Result<Vec<String>> {
    let names = git(root(), ["diff", "--name-only", &one.id, &other.id, "--", "benches", "fixtures"])?;
    Ok(names.lines().filter(|name| !name.ends_with(".md")).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A repository with one commit of a file, which was changed since, and a file that git does not know yet.
    fn repository() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        git(path, ["init", "--quiet", "--initial-branch=main"]).unwrap();
        fs::write(path.join("file"), "one").unwrap();
        fs::write(path.join(".gitignore"), "ignored\n").unwrap();
        git(path, ["add", "--all"]).unwrap();
        let who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"];
        git(path, who.into_iter().chain(["commit", "--quiet", "--message=one"])).unwrap();
        fs::write(path.join("file"), "two").unwrap();
        fs::write(path.join("new"), "new").unwrap();
        fs::write(path.join("ignored"), "ignored").unwrap();
        folder
    }

    #[test]
    fn the_candidate_is_the_working_tree_as_it_is_and_nothing_of_it_changes() {
        let folder = repository();
        let path = folder.path();
        let before = git(path, ["status", "--porcelain"]).unwrap();
        let candidate = working_tree(path).unwrap();
        let reference = resolve(path, "main").unwrap();
        assert_ne!(candidate.id, reference.id);
        let names = git(path, ["ls-tree", "--name-only", &candidate.id]).unwrap();
        assert_eq!(names, ".gitignore\nfile\nnew");
        assert_eq!(git(path, ["show", &format!("{}:file", candidate.id)]).unwrap(), "two");
        assert_eq!(git(path, ["show", &format!("{}:file", reference.id)]).unwrap(), "one");
        assert_eq!(git(path, ["status", "--porcelain"]).unwrap(), before);
    }

    #[test]
    fn a_worktree_takes_any_tree_and_leaves_nothing_behind() {
        let folder = repository();
        let path = folder.path();
        let elsewhere = tempfile::tempdir().unwrap();
        let before = git(path, ["status", "--porcelain"]).unwrap();
        let [reference, candidate] = [resolve(path, "HEAD").unwrap(), working_tree(path).unwrap()];
        let worktree = Worktree::of(path, elsewhere.path()).unwrap();
        let read = |name: &str| fs::read_to_string(worktree.path().join(name)).ok();
        worktree.check_out(&candidate).unwrap();
        assert_eq!((read("file").as_deref(), read("new").as_deref()), (Some("two"), Some("new")));
        worktree.check_out(&reference).unwrap();
        assert_eq!((read("file").as_deref(), read("new").as_deref()), (Some("one"), None));
        // Not one that is in the way from another time either.
        std::mem::forget(worktree);
        drop(Worktree::of(path, elsewhere.path()).unwrap());
        assert!(!elsewhere.path().join("tree").exists());
        assert_eq!(git(path, ["worktree", "list", "--porcelain"]).unwrap().matches("worktree ").count(), 1);
        assert_eq!(git(path, ["status", "--porcelain"]).unwrap(), before);
    }

    #[test]
    fn what_is_no_commit_and_where_there_is_no_repository_is_said() {
        let folder = repository();
        for bad in ["nothing", "--all", "HEAD:file", ""] {
            let error = resolve(folder.path(), bad).unwrap_err().to_string();
            assert!(error.contains("is not a commit"), "{error}");
        }
        let empty = tempfile::tempdir().unwrap();
        assert!(working_tree(empty.path()).unwrap_err().to_string().contains("not a git repository"));
    }
}
