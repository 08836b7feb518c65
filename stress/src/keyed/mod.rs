//! The soak of keyed actors: processes on one store, one after the other, each killed at some moment or ended in order, whose
//! books must balance.
//!
//! Two kinds count. Of the one that saves each message what was answered is found, and of what was not answered any part; of
//! the other that after an end in order, and after a kill no less than the round before. Meanwhile actors are pushed out of
//! memory, crash and change their version, and the store is slow, full for a while, and late with some of what it refused.

mod books;
mod rough;
mod round;

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use airssys_wasm_keyed::{FjallStore, StateStore, StoreConfig};
use anyhow::{Context, Result, bail};

use self::books::Books;
pub use self::round::{Round, run as run_round};

/// Kinds, and whether they save each message.
const KINDS: [(&str, bool); 2] = [("each", true), ("within", false)];

/// Keys of each kind.
const KEYS: u32 = 2_400;

/// What can be chosen about a soak of keyed actors.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How long, in minutes; one round at least
    #[arg(long, default_value_t = 10.0)]
    pub minutes: f64,
    /// What is done is drawn from this; who is faster is up to the scheduler
    #[arg(long, default_value_t = fastrand::u64(..), hide_default_value = true)]
    pub seed: u64,
    /// Take away one from the count of a key in the store, in the middle, to see that the books notice
    #[arg(long)]
    pub tamper: bool,
}

/// Runs it. `program` starts a round: it is given the options of a [`Round`].
///
/// # Errors
///
/// The first finding, or what was in the way.
pub fn run(options: &Options, folder: &Path, program: impl Fn() -> Command) -> Result<()> {
    println!("seed {}", options.seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut random = fastrand::Rng::with_seed(options.seed);
    let until = Instant::now() + Duration::from_secs_f64(options.minutes * 60.0);
    let mut books = Books::default();
    let (mut rounds, mut kills, mut answers) = (0_u64, 0_u64, 0_u64);
    loop {
        let kill_after = random.bool().then(|| random.usize(100..5_000));
        let round = Round { folder: folder.to_owned(), seed: random.u64(..), millis: random.u64(500..6_000) };
        let heard = play(&mut program(), &round, kill_after, &mut books)?;
        answers += heard.answers;
        runtime.block_on(audit(folder, &mut books, heard.was_killed, options.tamper && rounds == 1))?;
        rounds += 1;
        kills += u64::from(heard.was_killed);
        println!("{rounds} rounds, {kills} kills, {answers} answers, {} counted", books.sum());
        let is_enough = !options.tamper || rounds > 2;
        if Instant::now() >= until && is_enough {
            return Ok(());
        }
    }
}

struct Heard {
    answers: u64,
    was_killed: bool,
}

/// Starts a process, enters what it says, and perhaps kills it.
fn play(program: &mut Command, round: &Round, kill_after: Option<usize>, books: &mut Books) -> Result<Heard> {
    program.arg("--folder").arg(&round.folder);
    program.args(["--seed", &round.seed.to_string(), "--millis", &round.millis.to_string()]);
    let mut child = program.stdout(Stdio::piped()).spawn().context("a round cannot be started")?;
    let output = child.stdout.take().context("a round has no output")?;
    let (mut answers, mut is_done) = (0, false);
    for (line, said) in BufReader::new(output).lines().enumerate() {
        let said = said?;
        let words: Vec<_> = said.split(' ').collect();
        match words[..] {
            ["answered", kind, key, count] => {
                answers += 1;
                books.answered((kind.to_owned(), key.parse()?), count.parse()?).map_err(anyhow::Error::msg)?;
            }
            ["unknown", kind, key] => books.unknown((kind.to_owned(), key.parse()?)),
            ["done"] => is_done = true,
            _ => bail!("a round says {said:?}"),
        }
        if kill_after == Some(line + 1) {
            child.kill()?;
        }
    }
    let status = child.wait()?;
    if !is_done && kill_after.is_none() {
        bail!("a round ended by itself, with {status}");
    }
    Ok(Heard { answers, was_killed: !is_done })
}

/// Compares the store with the books.
async fn audit(folder: &Path, books: &mut Books, was_killed: bool, tamper: bool) -> Result<()> {
    let store = FjallStore::open(StoreConfig::new(folder)).await?;
    let names: Vec<_> = books.names().cloned().collect();
    if tamper && let Some((kind, key)) = names.first() {
        let row = store.load(kind, &key.to_string()).await?.context("it was never saved")?;
        let less = number(&row.state)?.saturating_sub(1).to_le_bytes().to_vec();
        store.save(kind, &key.to_string(), row.version, less.into(), airssys_wasm_keyed::Durability::Process).await?;
    }
    for (kind, saves_each) in KINDS {
        let mut rows = 0;
        // Of a key that was asked for the first time when the process was killed, nothing was said.
        let mut of_kind: BTreeSet<_> = names.iter().filter(|name| name.0 == kind).cloned().collect();
        for key in store.keys(kind, None, KEYS as usize + 1).await? {
            of_kind.insert((kind.to_owned(), key.parse()?));
        }
        for name in &of_kind {
            let row = store.load(kind, &name.1.to_string()).await?;
            rows += u64::from(row.is_some());
            let found = row.map_or(Ok(0), |row| number(&row.state))?;
            books.found(name, found, was_killed, was_killed && !saves_each).map_err(anyhow::Error::msg)?;
        }
        let counted = store.count(kind).await?;
        if counted != rows {
            bail!("the store counts {counted} rows of `{kind}`, and has {rows}");
        }
    }
    store.close().await;
    Ok(())
}

fn number(state: &[u8]) -> Result<u64> {
    Ok(u64::from_le_bytes(state.try_into().context("a state is no count")?))
}
