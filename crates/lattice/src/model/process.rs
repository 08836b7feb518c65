//! What a process of a host does with its session, the sessions of others, and what it claims.

use super::*;
use crate::lease::Joining;

pub(super) struct Process<C> {
    pub(super) me: Host,
    pub(super) sessions: Option<Sessions<Host>>,
    things: BTreeMap<usize, (u64, Owner<Host>)>,
    /// One of the two.
    joining: Option<Joining>,
    pub(super) joined: Option<(Holder, C)>,
    /// When to try again to join.
    join: Duration,
    /// When to try again to end sessions of others.
    end: Duration,
}

impl<C: Claims> Process<C> {
    pub(super) fn new(me: Host, number: u64) -> Self {
        Self {
            me,
            sessions: None,
            things: BTreeMap::new(),
            joining: Some(Joining::new(TIMING, number)),
            joined: None,
            join: Duration::ZERO,
            end: Duration::ZERO,
        }
    }

    fn heed(&mut self, standing: Standing) {
        if standing == Standing::Holds {
            return;
        }
        if let Some((holder, _)) = self.joined.take() {
            self.joining = Some(holder.leave());
        }
        if standing == Standing::Anew {
            self.sessions = None;
            self.things.clear();
        }
    }

    fn see(&mut self, key: Key, value: Value, revision: u64, now: Duration) {
        let Some(sessions) = &mut self.sessions else { return };
        match (key, value) {
            (Key::Session(host), Value::Session(session)) => {
                let standing = sessions.saw(host, session, revision, now);
                self.heed(standing);
            }
            (Key::Thing(thing), Value::Owner(host, token)) => {
                let owner = Owner { host, token };
                if let Some((_, claims)) = &mut self.joined {
                    claims.record(thing, owner.clone(), revision);
                }
                self.things.insert(thing, (revision, owner));
            }
            (Key::Session(_), Value::Owner(..)) | (Key::Thing(_), Value::Session(_)) => unreachable!(),
        }
    }

    pub(super) fn hear(&mut self, notice: Notice, now: Duration) {
        match notice {
            Notice::All { bucket, records, revision } => {
                if self.sessions.as_ref().is_some_and(|sessions| sessions.bucket() != bucket) {
                    self.heed(Standing::Anew);
                }
                self.sessions.get_or_insert_with(|| Sessions::new(TIMING, bucket, now));
                for (key, (revision, value)) in records {
                    self.see(key, value, revision, now);
                }
                if let Some(sessions) = &mut self.sessions {
                    sessions.caught_up(revision);
                }
            }
            Notice::Change { key, value, revision } => {
                self.see(key, value, revision, now);
                if let Some(sessions) = &mut self.sessions {
                    sessions.caught_up(revision);
                }
            }
            Notice::Answer { bucket, .. } if self.sessions.as_ref().is_none_or(|known| known.bucket() != bucket) => {
                self.heed(Standing::Anew);
            }
            Notice::Answer { write: Write { renewal: Some(renewal), .. }, bucket, result } => {
                let standing = match (result, &mut self.joined) {
                    (Ok(revision), Some((holder, _))) => holder.renewed(renewal, revision, now),
                    (Err(found), Some((holder, _))) => {
                        let found = found.and_then(|(revision, value)| match value {
                            Value::Session(session) => Some((session?, revision)),
                            Value::Owner(..) => unreachable!(),
                        });
                        holder.refused(renewal, bucket, found)
                    }
                    (Ok(revision), None) => {
                        match self.joining.take().expect("one of the two").joined(renewal, bucket, revision) {
                            Ok(holder) => {
                                let mut claims = C::new(self.me, &holder);
                                for (thing, (revision, owner)) in &self.things {
                                    claims.record(*thing, owner.clone(), *revision);
                                }
                                self.joined = Some((holder, claims));
                            }
                            Err(joining) => self.joining = Some(joining),
                        }
                        Standing::Holds
                    }
                    (Err(_), None) => Standing::Holds,
                };
                self.heed(standing);
            }
            Notice::Answer { write: Write { key: Key::Thing(thing), follows, value, .. }, result, .. } => {
                let owner = |value| match value {
                    Value::Owner(host, token) => Owner { host, token },
                    Value::Session(_) => unreachable!(),
                };
                let Some((_, claims)) = &mut self.joined else { return };
                let standing = match result {
                    Ok(revision) => {
                        claims.record(thing, owner(value), revision);
                        Standing::Holds
                    }
                    Err(found) => {
                        let found = found.map(|(revision, value)| (owner(value), revision));
                        claims.refused(thing, follows, found)
                    }
                };
                self.heed(standing);
            }
            // The session of another was ended, or not: the watch will show it.
            Notice::Answer { .. } => {}
        }
    }

    pub(super) fn tick(&mut self, takers: &[Host], now: Duration) -> Vec<Write> {
        let mut writes = Vec::new();
        if self.joined.as_ref().is_some_and(|(holder, _)| holder.is_fenced(now)) {
            self.heed(Standing::Rejoin);
        }
        let Some(sessions) = &self.sessions else { return writes };
        if let Some(joining) = self.joining.as_mut().filter(|_| now >= self.join)
            && let Some(renewal) = joining.attempt(sessions.get(&self.me), now)
        {
            self.join = now + TIMING.renewal;
            writes.push(self.session(renewal));
        }
        if let Some((holder, claims)) = &mut self.joined {
            let renewal = (now >= holder.due()).then(|| holder.renewal_sent(now));
            let is_time = now >= self.end;
            for (host, follows) in sessions.lapsed(now).filter(|(host, _)| is_time && **host != self.me) {
                self.end = now + TIMING.renewal;
                writes.push(Write { key: Key::Session(host), follows, value: Value::Session(None), renewal: None });
            }
            for (thing, owner, follows) in claims.writes(sessions, takers, now) {
                let value = Value::Owner(owner.host, owner.token);
                writes.push(Write { key: Key::Thing(thing), follows, value, renewal: None });
            }
            writes.extend(renewal.map(|renewal| self.session(renewal)));
        }
        writes
    }

    fn session(&self, renewal: Renewal) -> Write {
        let value = Value::Session(Some(renewal.session));
        Write { key: Key::Session(self.me), follows: renewal.follows, value, renewal: Some(renewal) }
    }
}
