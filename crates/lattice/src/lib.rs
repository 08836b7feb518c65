//! Several hosts, one system.
