//! Comparisons that are kept, by the commits of their sides.

use std::{fs, path::PathBuf};

use super::outcome::Outcome;
use crate::workspace::target_folder;

fn folder() -> PathBuf {
    target_folder().join("bench/compared")
}

/// Where a comparison of two commits is kept; the newest of the same two. None for what is no commit's.
pub(super) fn path(outcome: &Outcome) -> Option<PathBuf> {
    let [reference, candidate] =
        outcome.commits.each_ref().map(|commit| commit.as_ref().map(|(commit, _)| &commit[..10]));
    // What was not committed is nobody's history.
    let is_commit = reference.zip(candidate).filter(|(reference, candidate)| reference != candidate);
    is_commit.map(|(reference, candidate)| folder().join(format!("{candidate}-beside-{reference}.json")))
}

/// Those that are kept, the oldest candidate first.
pub(crate) fn all() -> Vec<Outcome> {
    let files = fs::read_dir(folder()).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    // One of another version is no part of it.
    let mut all: Vec<_> = files.filter_map(|path| Outcome::read(&path).ok()).collect();
    all.sort_by_key(|outcome| outcome.commits[1].as_ref().map(|(_, at)| *at));
    all
}
