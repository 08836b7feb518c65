//! What a host writes down: a line for each thing that happens, in one write, so that it is there whatever becomes of the process.

use std::{
    fmt,
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context, Result};
use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};

/// Since the machine was started, the same for all processes.
pub(super) fn now() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.cast_unsigned(), u32::try_from(now.tv_nsec).unwrap_or_default())
}

/// Tasks from this number on send when nothing is hurt.
pub(super) const QUIET_TASKS: u32 = 1_000;

/// A message: who sent it, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Id {
    pub(super) round: u32,
    pub(super) host: usize,
    /// Of the processes that had the host's name.
    pub(super) life: u32,
    /// Who sends one after the other.
    pub(super) task: u32,
    pub(super) number: u64,
}

impl Id {
    /// Whether it was sent when nothing was hurt.
    pub(super) fn is_quiet(&self) -> bool {
        self.task >= QUIET_TASKS
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { round, host, life, task, number } = self;
        write!(f, "{round}.{host}.{life}.{task}.{number}")
    }
}

impl FromStr for Id {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<_> = text.split('.').collect();
        let [round, host, life, task, number] = parts[..] else { anyhow::bail!("{text:?} is no message") };
        Ok(Self {
            round: round.parse()?,
            host: host.parse()?,
            life: life.parse()?,
            task: task.parse()?,
            number: number.parse()?,
        })
    }
}

/// Makes an enum whose variants have a word each.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub(super) enum $name { $($(#[$of])* $variant,)* }

        impl $name {
            pub(super) fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            fn of(word: &str) -> Result<Self> {
                Ok(match word { $($word => Self::$variant,)* _ => anyhow::bail!("{word:?} is no {}", stringify!($name)) })
            }
        }
    };
}

words! {
    /// How a message is sent.
    How {
        Ask = "ask",
        /// With a deadline that may be too short.
        Timed = "timed-ask",
        Tell = "tell",
        /// Without waiting.
        Send = "send",
        /// By a guest of the host, which was asked to.
        Guest = "guest-ask",
        /// To a guest, which counts.
        Count = "count",
        /// To an actor of the kind that all hosts have, which counts.
        Key = "key",
        Publish = "publish",
    }
}

words! {
    /// What its sender was told.
    Fate {
        Answered = "answered",
        /// A mailbox has it.
        Accepted = "accepted",
        /// It is on its way: what becomes of it is not told, unless it is a dead letter.
        Queued = "queued",
        Refused = "refused",
        Lost = "lost",
        Late = "late",
        /// It may have been handled or not.
        Unknown = "unknown",
        /// The answer was another's.
        Wrong = "wrong",
    }
}

words! {
    /// Why it is a dead letter.
    Dead {
        Refused = "refused",
        Lost = "lost",
        /// Of an actor of this host, which did not come to it or not to its end.
        Here = "here",
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    Sent {
        how: How,
        to: String,
    },
    Outcome(Fate, u64),
    Dead(Dead),
    /// An actor has it, under a tenure if it serves its name alone.
    Begun {
        by: String,
        tenure: u32,
    },
    Ended,
    /// A publication has come.
    Heard,
}

/// Where a host's process writes what happens in a round.
pub(super) fn path(folder: &Path, host: usize, life: u32, round: u32) -> PathBuf {
    folder.join(format!("{host}.{life}.{round}.log"))
}

pub(super) struct Log(Mutex<File>);

impl Log {
    pub(super) fn open(path: &Path) -> Result<Self> {
        Ok(Self(Mutex::new(open(path)?)))
    }

    /// Goes on in another file.
    pub(super) fn turn_over(&self, path: &Path) -> Result<()> {
        *self.0.lock() = open(path)?;
        Ok(())
    }

    pub(super) fn write(&self, id: Id, record: &Record) {
        self.write_at(now(), id, record);
    }

    pub(super) fn write_at(&self, at: Duration, id: Id, record: &Record) {
        let at = at.as_nanos();
        let line = match record {
            Record::Sent { how, to } => format!("s {at} {id} {} {to}\n", how.word()),
            Record::Outcome(fate, count) => format!("o {at} {id} {} {count}\n", fate.word()),
            Record::Dead(dead) => format!("d {at} {id} {}\n", dead.word()),
            Record::Begun { by, tenure } => format!("b {at} {id} {by} {tenure}\n"),
            Record::Ended => format!("e {at} {id}\n"),
            Record::Heard => format!("h {at} {id}\n"),
        };
        self.write_line(&line);
    }

    /// For people.
    pub(super) fn note(&self, text: &str) {
        self.write_line(&format!("# {} {text}\n", now().as_nanos()));
    }

    fn write_line(&self, line: &str) {
        self.0.lock().write_all(line.as_bytes()).expect("the log can be written");
    }
}

fn open(path: &Path) -> Result<File> {
    File::options().append(true).create(true).open(path).with_context(|| format!("cannot open {}", path.display()))
}

/// What is in a log, in order. The last line of a process that was killed need not be whole.
pub(super) fn read(text: &str) -> impl Iterator<Item = Result<(Duration, Id, Record)>> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| parse(line).with_context(|| format!("{line:?} is not as expected")))
}

fn parse(line: &str) -> Result<(Duration, Id, Record)> {
    let words: Vec<_> = line.split(' ').collect();
    let [kind, at, id, ref rest @ ..] = words[..] else { anyhow::bail!("it is too short") };
    let record = match (kind, rest) {
        ("s", [how, to]) => Record::Sent { how: How::of(how)?, to: (*to).to_owned() },
        ("o", [fate, count]) => Record::Outcome(Fate::of(fate)?, count.parse()?),
        ("d", [dead]) => Record::Dead(Dead::of(dead)?),
        ("b", [by, tenure]) => Record::Begun { by: (*by).to_owned(), tenure: tenure.parse()? },
        ("e", []) => Record::Ended,
        ("h", []) => Record::Heard,
        _ => anyhow::bail!("it is no record"),
    };
    Ok((Duration::from_nanos(at.parse()?), id.parse()?, record))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_but_for_a_part_of_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(folder.path(), 1, 2, 3);
        let log = Log::open(&path).unwrap();
        let id = Id { round: 3, host: 1, life: 2, task: 4, number: 5 };
        let records = [
            Record::Sent { how: How::Timed, to: "echo-1".to_owned() },
            Record::Outcome(Fate::Answered, 7),
            Record::Dead(Dead::Here),
            Record::Begun { by: "alone".to_owned(), tenure: 2 },
            Record::Ended,
            Record::Heard,
        ];
        for record in &records {
            log.write(id, record);
        }
        log.note("for people");
        log.write_line("e 12");
        let text = std::fs::read_to_string(&path).unwrap();
        let found: Vec<_> = read(&text).map(Result::unwrap).collect();
        assert_eq!(found.iter().map(|(_, _, record)| record).collect::<Vec<_>>(), records.iter().collect::<Vec<_>>());
        assert!(found.iter().all(|(at, of, _)| *of == id && *at <= now()));
        assert!(read("e 1 2\n").any(|record| record.is_err()));
    }
}
