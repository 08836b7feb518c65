//! Sockets of a guest against real ones of this process: what is not granted is neither reached nor waited for.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
};

use airssys_wasm_isolation::WasiGrants;

use crate::probe::Probe;

const V4: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const V6: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::LOCALHOST), 0);

/// The addresses of this machine with itself.
fn loopbacks() -> Vec<SocketAddr> {
    let mut addresses = vec![V4];
    match UdpSocket::bind(V6) {
        Ok(_) => addresses.push(V6),
        Err(error) => eprintln!("left out, as there is no IPv6 here: {error}"),
    }
    addresses
}

fn connect(addresses: &[SocketAddr]) -> WasiGrants {
    WasiGrants { connect: addresses.to_vec(), ..WasiGrants::default() }
}

fn listen(addresses: &[SocketAddr]) -> WasiGrants {
    WasiGrants { listen: addresses.to_vec(), ..WasiGrants::default() }
}

fn both(addresses: &[SocketAddr]) -> WasiGrants {
    WasiGrants { listen: addresses.to_vec(), ..connect(addresses) }
}

/// An address that nobody listens on, and that differs from this one by its port alone.
fn with_other_port(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port() ^ 1)
}

/// An address of this machine with the same port.
fn with_other_ip(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(_) => SocketAddr::new(Ipv4Addr::new(127, 0, 0, 2).into(), address.port()),
        SocketAddr::V6(_) => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port()),
    }
}

fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        SocketAddr::V6(_) => address,
    }
}

/// A listener that says what came.
struct Server(TcpListener);

impl Server {
    fn start(address: SocketAddr) -> (Self, SocketAddr) {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        (Self(listener), address)
    }

    /// What a client has sent. It is waited for only where the guest was told that it is sent.
    fn got(&self, sent: bool) -> Option<String> {
        self.0.set_nonblocking(!sent).unwrap();
        let mut client = accepted(self.0.accept())?.0;
        client.set_nonblocking(false).unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        Some(text)
    }
}

/// A socket for datagrams that says what came.
struct Receiver(UdpSocket);

impl Receiver {
    fn start(address: SocketAddr) -> (Self, SocketAddr) {
        let socket = UdpSocket::bind(address).unwrap();
        let address = socket.local_addr().unwrap();
        (Self(socket), address)
    }

    /// What has come. It is waited for only where the guest was told that it is sent.
    fn got(&self, sent: bool) -> Option<String> {
        self.0.set_nonblocking(!sent).unwrap();
        let mut buffer = [0; 100];
        let len = accepted(self.0.recv(&mut buffer))?;
        Some(String::from_utf8(buffer[..len].to_vec()).unwrap())
    }
}

/// Nothing where there was nothing.
fn accepted<T>(result: io::Result<T>) -> Option<T> {
    match result {
        Ok(came) => Some(came),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            None
        }
    }
}

#[tokio::test]
async fn tcp_reaches_only_the_addresses_that_are_named() {
    for ip in loopbacks() {
        let (server, address) = Server::start(ip);
        let any_port = SocketAddr::new(address.ip(), 0);
        let cases = [
            (WasiGrants::default(), "create: access-denied"),
            (connect(&[with_other_port(address)]), "connect: access-denied"),
            (connect(&[with_other_ip(address)]), "connect: access-denied"),
            (listen(&[address]), "connect: access-denied"),
            (connect(&[address]), "done"),
            (connect(&[with_other_ip(address), address]), "done"),
            (connect(&[any_port]), "done"),
        ];
        for (grants, answer) in cases {
            let case = format!("{grants:?}");
            let mut probe = Probe::new(grants).await;
            assert_eq!(probe.run(&format!("tcp-send {address} hello")).await, answer, "{case}");
            assert_eq!(server.got(answer == "done").as_deref(), (answer == "done").then_some("hello"), "{case}");
        }
    }
}

#[tokio::test]
async fn an_ipv4_address_is_granted_in_either_form_and_reached_in_its_own() {
    let (server, address) = Server::start(V4);
    for grants in [connect(&[address]), connect(&[mapped(address)])] {
        let mut probe = Probe::new(grants).await;
        assert_eq!(probe.run(&format!("tcp-send {} hello", mapped(address))).await, "connect: invalid-argument");
        assert_eq!(server.got(false), None);
        assert_eq!(probe.run(&format!("tcp-send {address} hello")).await, "done");
        assert_eq!(server.got(true).as_deref(), Some("hello"));
    }
    // Neither form is a way around the grants.
    let mut probe = Probe::new(connect(&[with_other_port(address)])).await;
    assert_eq!(probe.run(&format!("tcp-send {} hello", mapped(address))).await, "connect: invalid-argument");
    assert_eq!(probe.run(&format!("tcp-send {address} hello")).await, "connect: access-denied");
    assert_eq!(server.got(false), None);
    // … nor is an address that means all of this machine.
    for all in ["0.0.0.0", "[::]", "[::127.0.0.1]"] {
        let answer = probe.run(&format!("tcp-send {all}:{} hello", address.port())).await;
        assert_eq!(answer, "connect: invalid-argument", "{all}");
    }
    assert_eq!(server.got(false), None);
}

#[tokio::test]
async fn an_address_is_compared_and_not_the_name_that_led_there() {
    let (server, address) = Server::start(V4);
    let send = format!("tcp-send localhost:{} hello", address.port());
    let cases = [
        (connect(&[address]), "resolve: permanent-resolver-failure"),
        (WasiGrants { name_lookup: true, ..WasiGrants::default() }, "create: access-denied"),
        (WasiGrants { name_lookup: true, ..connect(&[with_other_port(address)]) }, "connect: access-denied"),
        (WasiGrants { name_lookup: true, ..connect(&[address]) }, "done"),
    ];
    for (grants, answer) in cases {
        let case = format!("{grants:?}");
        let mut probe = Probe::new(grants).await;
        assert_eq!(probe.run(&send).await, answer, "{case}");
        assert_eq!(server.got(answer == "done").as_deref(), (answer == "done").then_some("hello"), "{case}");
    }
}

#[tokio::test]
async fn names_are_looked_up_only_where_that_is_granted() {
    let mut probe = Probe::new(both(&[V4])).await;
    assert_eq!(probe.run("resolve localhost").await, "resolve: permanent-resolver-failure");
    let mut probe = Probe::new(WasiGrants { name_lookup: true, ..WasiGrants::default() }).await;
    let addresses = probe.run("resolve localhost").await;
    assert!(addresses.split(',').all(|address| ["127.0.0.1", "::1"].contains(&address)), "{addresses}");
}

#[tokio::test]
async fn a_tcp_socket_is_bound_only_to_addresses_that_are_named() {
    for ip in loopbacks() {
        // Nobody else gets the port while this holds it, and a guest that may have it is told so.
        let (_server, taken) = Server::start(ip);
        let cases = [
            (WasiGrants::default(), "create: access-denied"),
            (listen(&[with_other_port(taken)]), "bind: access-denied"),
            (listen(&[with_other_ip(taken)]), "bind: access-denied"),
            (connect(&[taken]), "bind: access-denied"),
            (listen(&[taken]), "bind: address-in-use"),
            (listen(&[ip]), "bind: address-in-use"),
        ];
        for (grants, answer) in cases {
            let case = format!("{grants:?}");
            assert_eq!(Probe::new(grants).await.run(&format!("tcp-bind {taken}")).await, answer, "{case}");
        }
    }
}

#[tokio::test]
async fn a_guest_listens_only_where_it_was_granted() {
    for ip in loopbacks() {
        let mut probe = Probe::new(listen(&[ip])).await;
        let address: SocketAddr = probe.run(&format!("tcp-listen {ip}")).await.parse().unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(b"hello").unwrap();
        assert_eq!(probe.run("tcp-accept").await, "hello");

        let everywhere = format!("tcp-listen {}", with_other_ip(ip));
        assert_eq!(probe.run(&everywhere).await, "bind: access-denied");
        // Who may connect may have the system pick a port, but nobody may come in there.
        let unspecified = if ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let mut probe = Probe::new(connect(&[ip])).await;
        assert_eq!(probe.run(&format!("tcp-listen {unspecified}")).await, "listen: access-denied");
        assert_eq!(probe.run(&format!("tcp-listen {ip}")).await, "bind: access-denied");
        assert_eq!(
            Probe::new(WasiGrants::default()).await.run(&format!("tcp-listen {ip}")).await,
            "create: access-denied"
        );
    }
}

#[tokio::test]
async fn a_bound_socket_connects_only_where_it_was_granted() {
    let (server, address) = Server::start(V4);
    let send = format!("tcp-send-from {V4} {address} hello");
    for (grants, answer) in [(listen(&[V4]), "connect: access-denied"), (both(&[V4]), "done")] {
        assert_eq!(Probe::new(grants).await.run(&send).await, answer);
        assert_eq!(server.got(answer == "done").as_deref(), (answer == "done").then_some("hello"));
    }
}

#[tokio::test]
async fn datagrams_reach_only_the_addresses_that_are_named() {
    for ip in loopbacks() {
        let (receiver, address) = Receiver::start(ip);
        // Where only `connect` is granted, the system picks the socket's own address.
        let unspecified = if ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let any_port = ip;
        let local = ip.to_string();
        let cases = [
            (connect(&[with_other_port(address)]), unspecified, false),
            (connect(&[with_other_ip(address)]), unspecified, false),
            (listen(&[any_port]), &local, false),
            (listen(&[address, any_port]), &local, false),
            (connect(&[address]), unspecified, true),
            (connect(&[any_port]), unspecified, true),
            (both(&[any_port]), &local, true),
        ];
        for (grants, bind, granted) in cases {
            let case = format!("{grants:?}");
            let mut probe = Probe::new(grants).await;
            let bound = probe.run(&format!("udp-bind {bind}")).await;
            bound.parse::<SocketAddr>().unwrap_or_else(|_| panic!("{case}: {bound}"));
            for (command, denied) in [
                ("udp-send", "send: access-denied"),
                ("udp-stream-send", "stream: access-denied"),
                // What was refused leaves no connection behind.
                ("udp-send", "send: access-denied"),
            ] {
                let answer = probe.run(&format!("{command} {address} hello")).await;
                assert_eq!(answer, if granted { "done" } else { denied }, "{case}: {command}");
                assert_eq!(receiver.got(granted).as_deref(), granted.then_some("hello"), "{case}: {command}");
            }
            let elsewhere = probe.run(&format!("udp-send {} hello", mapped(address))).await;
            let refused = if ip.is_ipv4() {
                "send: invalid-argument"
            } else if granted {
                "done"
            } else {
                "send: access-denied"
            };
            assert_eq!(elsewhere, refused, "{case}");
            assert_eq!(receiver.got(refused == "done").is_some(), refused == "done", "{case}");
        }
    }
}

#[tokio::test]
async fn a_datagram_socket_is_bound_only_to_addresses_that_are_named() {
    for ip in loopbacks() {
        let (_receiver, taken) = Receiver::start(ip);
        let cases = [
            (WasiGrants::default(), "create: access-denied"),
            (listen(&[with_other_port(taken)]), "bind: access-denied"),
            (listen(&[with_other_ip(taken)]), "bind: access-denied"),
            (connect(&[taken]), "bind: access-denied"),
            (listen(&[taken]), "bind: address-in-use"),
        ];
        for (grants, answer) in cases {
            let case = format!("{grants:?}");
            assert_eq!(Probe::new(grants).await.run(&format!("udp-bind {taken}")).await, answer, "{case}");
        }
    }
}

#[tokio::test]
async fn datagrams_come_in_only_from_who_may_be_sent_to_unless_listening_is_granted() {
    for ip in loopbacks() {
        let granted = UdpSocket::bind(ip).unwrap();
        let other = UdpSocket::bind(ip).unwrap();
        let unspecified = if ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        for (grants, bind, received) in [
            (connect(&[granted.local_addr().unwrap()]), unspecified.to_owned(), "from granted"),
            (listen(&[ip]), ip.to_string(), "from other,from granted"),
        ] {
            let case = format!("{grants:?}");
            let mut probe = Probe::new(grants).await;
            let bound: SocketAddr = probe.run(&format!("udp-bind {bind}")).await.parse().unwrap();
            let to = SocketAddr::new(ip.ip(), bound.port());
            other.send_to(b"from other", to).unwrap();
            granted.send_to(b"from granted", to).unwrap();
            assert_eq!(probe.run("udp-receive").await, received, "{case}");
        }
    }
}

#[tokio::test]
async fn a_datagram_socket_is_connected_only_to_whom_it_may_send() {
    let granted = UdpSocket::bind(V4).unwrap();
    let address = granted.local_addr().unwrap();
    let (receiver, other) = Receiver::start(V4);
    let mut probe = Probe::new(WasiGrants { connect: vec![address], listen: vec![V4], ..WasiGrants::default() }).await;
    let bound = probe.run(&format!("udp-bind {V4}")).await;
    assert_eq!(probe.run(&format!("udp-stream-receive {other}")).await, "stream: access-denied");
    assert_eq!(receiver.got(false), None);
    granted.send_to(b"hello", &bound).unwrap();
    assert_eq!(probe.run(&format!("udp-stream-receive {address}")).await, "hello");
}

#[tokio::test]
async fn a_grant_to_listen_lets_nobody_in_at_a_socket_of_another_port() {
    let granted = UdpSocket::bind(V4).unwrap();
    let (keeps_the_port, listening) = Receiver::start(V4);
    drop(keeps_the_port);
    let grants = WasiGrants { listen: vec![listening], ..connect(&[granted.local_addr().unwrap()]) };
    let mut probe = Probe::new(grants).await;
    // It would receive from anybody.
    assert_eq!(probe.run("udp-bind 0.0.0.0:0").await, "bind: access-denied");
    // Who only sends has a port that the system picks.
    let mut sends = Probe::new(connect(&[granted.local_addr().unwrap()])).await;
    let bound: SocketAddr = sends.run("udp-bind 0.0.0.0:0").await.parse().unwrap();
    let to = SocketAddr::new(V4.ip(), bound.port());
    UdpSocket::bind(V4).unwrap().send_to(b"from a stranger", to).unwrap();
    granted.send_to(b"from granted", to).unwrap();
    assert_eq!(sends.run("udp-receive").await, "from granted");
}
