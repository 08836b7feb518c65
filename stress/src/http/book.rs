//! What came of the requests of all clients.

use std::{collections::BTreeMap, fmt, time::Duration};

/// What came of a request of a healthy client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The answer that there is to it.
    Right,
    /// There was no room or no time for it, and the server said so.
    Refused(u16),
    /// The server closed a connection that had been idle for long, and had not begun to answer. To be asked again.
    Again,
    /// Anything else.
    Wrong(String),
}

/// An answer, or why there is none.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) retry_after: Option<u64>,
    pub(super) body: Vec<u8>,
    /// Whether the body ended as it should.
    pub(super) is_whole: bool,
}

/// Holds an answer against the one that is right. A guest that was refused itself passes on the status alone.
pub(super) fn judge(answer: &Answer, right: &[u8], is_passed_on: bool) -> Verdict {
    let Answer { status, retry_after, body, is_whole } = answer;
    match status {
        _ if !is_whole => Verdict::Wrong(format!("{status}, broken off after {} bytes", body.len())),
        200 if body == right => Verdict::Right,
        503 if retry_after.is_some() || is_passed_on => Verdict::Refused(503),
        504 | 408 => Verdict::Refused(*status),
        _ => {
            let shown = String::from_utf8_lossy(&body[..body.len().min(100)]);
            Verdict::Wrong(format!("{status} with {} bytes: {shown:?}", body.len()))
        }
    }
}

/// What came of one kind of request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Line {
    asked: u64,
    right: u64,
    again: u64,
    refused: BTreeMap<u16, u64>,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Book {
    healthy: BTreeMap<&'static str, Line>,
    /// What the server said to each kind of hostile client, 0 for nothing, and how often.
    hostile: BTreeMap<&'static str, BTreeMap<u16, u64>>,
    findings: Vec<String>,
}

impl Book {
    /// A healthy client asks.
    pub(super) fn asks(&mut self, kind: &'static str) {
        self.healthy.entry(kind).or_default().asked += 1;
    }

    pub(super) fn note(&mut self, kind: &'static str, verdict: Verdict) {
        let line = self.healthy.entry(kind).or_default();
        match verdict {
            Verdict::Right => line.right += 1,
            Verdict::Again => line.again += 1,
            Verdict::Refused(status) => *line.refused.entry(status).or_default() += 1,
            Verdict::Wrong(why) => self.findings.push(format!("a healthy client asked for {kind}: {why}")),
        }
    }

    /// A hostile client was told this, 0 for nothing.
    pub(super) fn endured(&mut self, kind: &'static str, told: u16) {
        *self.hostile.entry(kind).or_default().entry(told).or_default() += 1;
    }

    pub(super) fn find(&mut self, finding: String) {
        self.findings.push(finding);
    }

    /// Whether nothing was found.
    pub(super) fn is_well(&self) -> bool {
        self.findings.is_empty()
    }

    /// What was found, with what does not add up once nobody asks any more.
    pub(super) fn findings(&self) -> Vec<String> {
        let mut findings = self.findings.clone();
        if !findings.is_empty() {
            return findings;
        }
        let mut right = 0;
        for (kind, Line { asked, right: of_these, again, refused }) in &self.healthy {
            right += of_these;
            let told = of_these + again + refused.values().sum::<u64>();
            if told != *asked {
                findings.push(format!("{asked} requests for {kind}, and {told} of them have ended"));
            }
        }
        if right == 0 {
            findings.push("no healthy client had a right answer".to_owned());
        }
        findings
    }

    /// Takes in what another has.
    pub(super) fn add(&mut self, other: Self) {
        for (kind, Line { asked, right, again, refused }) in other.healthy {
            let line = self.healthy.entry(kind).or_default();
            (line.asked, line.right, line.again) = (line.asked + asked, line.right + right, line.again + again);
            add(&mut line.refused, refused);
        }
        for (kind, told) in other.hostile {
            add(self.hostile.entry(kind).or_default(), told);
        }
        self.findings.extend(other.findings);
    }

    /// In a line.
    pub(super) fn told(&self, time: Duration) -> String {
        let right: u64 = self.healthy.values().map(|line| line.right).sum();
        let refused: u64 = self.healthy.values().flat_map(|line| line.refused.values()).sum();
        let hostile: u64 = self.hostile.values().flat_map(BTreeMap::values).sum();
        let per_second = right as f64 / time.as_secs_f64();
        format!("{right} right answers ({per_second:.0} a second), {refused} refused, {hostile} hostile clients")
    }
}

fn add(to: &mut BTreeMap<u16, u64>, more: BTreeMap<u16, u64>) {
    for (status, count) in more {
        *to.entry(status).or_default() += count;
    }
}

/// `503: 2, 504: 1`
fn listed(statuses: &BTreeMap<u16, u64>) -> String {
    let each = statuses.iter().map(|(status, count)| match status {
        0 => format!("nothing: {count}"),
        status => format!("{status}: {count}"),
    });
    each.collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Book {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<26}{:>10}{:>10}{:>10}  refused", "healthy clients", "asked", "right", "again")?;
        for (kind, Line { asked, right, again, refused }) in &self.healthy {
            writeln!(f, "{kind:<26}{asked:>10}{right:>10}{again:>10}  {}", listed(refused))?;
        }
        writeln!(f, "\n{:<26}what they were told", "hostile clients")?;
        for (kind, told) in &self.hostile {
            writeln!(f, "{kind:<26}{}", listed(told))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer { status, retry_after: None, body: body.into(), is_whole: true }
    }

    #[test]
    fn an_answer_is_right_refused_or_wrong() {
        assert_eq!(judge(&answer(200, "hello"), b"hello", false), Verdict::Right);
        assert_eq!(judge(&Answer { retry_after: Some(1), ..answer(503, "") }, b"hello", false), Verdict::Refused(503));
        assert_eq!(judge(&answer(504, ""), b"hello", false), Verdict::Refused(504));
        assert_eq!(judge(&answer(503, ""), b"hello", true), Verdict::Refused(503));
        for wrong in [
            answer(200, "hell"),
            answer(500, "the component failed"),
            answer(404, ""),
            // It does not say when to come back.
            answer(503, ""),
            Answer { is_whole: false, ..answer(200, "hello") },
        ] {
            assert!(matches!(judge(&wrong, b"hello", false), Verdict::Wrong(_)), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_asked_must_end_and_some_of_it_well() {
        let mut book = Book::default();
        for verdict in [Verdict::Right, Verdict::Again, Verdict::Refused(503)] {
            book.asks("hello");
            book.note("hello", verdict);
        }
        assert_eq!(book.findings(), Vec::<String>::new());
        book.asks("hello");
        assert_eq!(book.findings(), ["4 requests for hello, and 3 of them have ended"]);
        book.note("hello", Verdict::Wrong("500".into()));
        assert_eq!(book.findings(), ["a healthy client asked for hello: 500"]);

        let mut refused = Book::default();
        refused.asks("hello");
        refused.note("hello", Verdict::Refused(503));
        assert_eq!(refused.findings(), ["no healthy client had a right answer"]);
        book.add(refused);
        assert_eq!(book.healthy["hello"], Line { asked: 5, right: 1, again: 1, refused: [(503, 2)].into() });
    }

    #[test]
    fn what_hostile_clients_were_told_is_counted() {
        let (mut book, mut other) = (Book::default(), Book::default());
        book.endured("slow head", 0);
        other.endured("slow head", 0);
        other.endured("slow head", 408);
        book.add(other);
        assert!(book.to_string().contains("slow head                 nothing: 2, 408: 1\n"), "{book}");
    }
}
