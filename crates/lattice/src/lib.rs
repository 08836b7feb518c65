//! Several hosts, one system.

#[cfg_attr(not(test), expect(dead_code, reason = "hosts do not join yet"))]
mod lease;
#[cfg(test)]
mod model;
#[cfg_attr(not(test), expect(dead_code, reason = "hosts do not join yet"))]
mod slots;
