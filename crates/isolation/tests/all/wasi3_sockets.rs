//! A guest in Rust with WASI 0.3: sockets and host names, against real ones of this process.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
};

use airssys_wasm_isolation::WasiGrants;

use crate::probe::Probe;

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn connect(addresses: &[SocketAddr]) -> WasiGrants {
    WasiGrants { connect: addresses.to_vec(), ..WasiGrants::default() }
}

fn listen(addresses: &[SocketAddr]) -> WasiGrants {
    WasiGrants { listen: addresses.to_vec(), ..WasiGrants::default() }
}

fn both(addresses: &[SocketAddr]) -> WasiGrants {
    WasiGrants { listen: addresses.to_vec(), ..connect(addresses) }
}

/// An address that differs from this one by its port alone.
fn with_other_port(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port() ^ 1)
}

/// A server that answers one client with what came and a `!`.
fn echo() -> (SocketAddr, thread::JoinHandle<()>) {
    let listener = TcpListener::bind(ANY).unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut question = Vec::new();
        client.read_to_end(&mut question).unwrap();
        question.push(b'!');
        client.write_all(&question).unwrap();
    });
    (address, server)
}

#[tokio::test]
async fn tcp_reaches_only_the_addresses_that_are_named() {
    let (address, server) = echo();
    let ask = format!("tcp-ask {address} hello");
    for (grants, answer) in [
        (WasiGrants::default(), "create: access-denied"),
        (connect(&[with_other_port(address)]), "connect: access-denied"),
        (listen(&[address]), "connect: access-denied"),
        (connect(&[address]), "hello!"),
    ] {
        assert_eq!(Probe::wasi3(grants).await.run(&ask).await, answer);
    }
    server.join().unwrap();
    // Bound and not listened on, so that no other test gets the port.
    let bound = tokio::net::TcpSocket::new_v4().unwrap();
    bound.bind(ANY).unwrap();
    let nobody = bound.local_addr().unwrap();
    let mut probe = Probe::wasi3(connect(&[nobody])).await;
    assert_eq!(probe.run(&format!("tcp-ask {nobody} hello")).await, "connect: connection-refused");
}

#[tokio::test]
async fn a_bound_socket_connects_only_where_it_was_granted() {
    for (grants, granted) in [(listen(&[ANY]), false), (both(&[ANY]), true)] {
        let (address, server) = echo();
        let answer = Probe::wasi3(grants).await.run(&format!("tcp-send-from {ANY} {address} hello")).await;
        assert_eq!(answer, if granted { "done" } else { "connect: access-denied" });
        if granted {
            server.join().unwrap();
        } else {
            let mut client = TcpStream::connect(address).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            client.read_to_end(&mut Vec::new()).unwrap();
            server.join().unwrap();
        }
    }
}

#[tokio::test]
async fn a_guest_listens_only_where_it_was_granted() {
    let mut probe = Probe::wasi3(listen(&[ANY])).await;
    let address: SocketAddr = probe.run(&format!("tcp-listen {ANY}")).await.parse().unwrap();
    for _ in 0..3 {
        assert_eq!(probe.run("cancel-accept").await, "pending");
    }
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(b"hello").unwrap();
    drop(client);
    assert_eq!(probe.run("tcp-accept").await, "hello");
    for (grants, answer) in [
        (WasiGrants::default(), "create: access-denied"),
        (connect(&[ANY]), "bind: access-denied"),
        (listen(&[with_other_port(address)]), "bind: access-denied"),
    ] {
        assert_eq!(Probe::wasi3(grants).await.run(&format!("tcp-listen {address}")).await, answer);
    }
}

#[tokio::test]
async fn connections_that_are_dropped_half_way_are_closed() {
    let listener = TcpListener::bind(ANY).unwrap();
    let address = listener.local_addr().unwrap();
    let mut probe = Probe::wasi3(connect(&[address])).await;
    assert_eq!(probe.run(&format!("tcp-drop {address}")).await, "done");
    let (mut client, _) = listener.accept().unwrap();
    assert_eq!(client.read(&mut [0; 10]).unwrap(), 0, "closed");
    let answer = probe.run(&format!("cancel-connect {address}")).await;
    assert!(["pending", "ready"].contains(&answer.as_str()), "{answer}");
    assert_eq!(probe.run(&format!("tcp-drop {address}")).await, "done");
}

#[tokio::test]
async fn datagrams_go_only_where_it_was_granted() {
    let socket = UdpSocket::bind(ANY).unwrap();
    let address = socket.local_addr().unwrap();
    let mut buffer = [0; 1 << 16];
    for (grants, bind, granted) in [
        (connect(&[with_other_port(address)]), "0.0.0.0:0", false),
        (listen(&[ANY]), "127.0.0.1:0", false),
        (connect(&[address]), "0.0.0.0:0", true),
        (both(&[ANY]), "127.0.0.1:0", true),
    ] {
        let mut probe = Probe::wasi3(grants).await;
        probe.run(&format!("udp-bind {bind}")).await.parse::<SocketAddr>().unwrap();
        for (connects, send) in [(false, format!("udp-send {address} hello")), (true, "udp-send hello".to_owned())] {
            if connects {
                let answer = probe.run(&format!("udp-connect {address}")).await;
                assert_eq!(answer, if granted { "done" } else { "connect: access-denied" });
            }
            let refused = if connects { "send: invalid-argument" } else { "send: access-denied" };
            assert_eq!(probe.run(&send).await, if granted { "done" } else { refused });
            if granted {
                let (len, _) = socket.recv_from(&mut buffer).unwrap();
                assert_eq!(&buffer[..len], b"hello");
            }
        }
    }
    assert_eq!(
        Probe::wasi3(WasiGrants::default()).await.run(&format!("udp-bind {ANY}")).await,
        "create: access-denied"
    );
    socket.set_nonblocking(true).unwrap();
    assert!(socket.recv_from(&mut buffer).is_err(), "and no more has come");
}

#[tokio::test]
async fn a_datagram_is_no_larger_than_one_can_be() {
    let socket = UdpSocket::bind(ANY).unwrap();
    let address = socket.local_addr().unwrap();
    let mut probe = Probe::wasi3(connect(&[address])).await;
    probe.run("udp-bind 0.0.0.0:0").await;
    assert_eq!(probe.run(&format!("udp-send-bytes {address} 60000")).await, "done");
    assert_eq!(socket.recv_from(&mut [0; 1 << 16]).unwrap().0, 60_000);
    for bytes in [65_535, 65_536, 1_000_000] {
        assert_eq!(
            probe.run(&format!("udp-send-bytes {address} {bytes}")).await,
            "send: datagram-too-large",
            "{bytes}"
        );
    }
}

#[tokio::test]
async fn datagrams_are_received_from_whom_it_was_granted() {
    let socket = UdpSocket::bind(ANY).unwrap();
    let stranger = UdpSocket::bind(ANY).unwrap();
    let address = socket.local_addr().unwrap();
    // By `listen`, from anybody.
    let mut probe = Probe::wasi3(listen(&[ANY])).await;
    let guest: SocketAddr = probe.run(&format!("udp-bind {ANY}")).await.parse().unwrap();
    stranger.send_to(b"hello", guest).unwrap();
    assert_eq!(probe.run("udp-receive").await, "hello");
    // By `connect`, from those alone.
    let mut probe = Probe::wasi3(connect(&[address])).await;
    let guest: SocketAddr = probe.run("udp-bind 0.0.0.0:0").await.parse().unwrap();
    let guest = SocketAddr::new(ANY.ip(), guest.port());
    stranger.send_to(b"from a stranger", guest).unwrap();
    socket.send_to(b"hello", guest).unwrap();
    assert_eq!(probe.run("udp-receive").await, "hello");
}

#[tokio::test]
async fn receives_in_flight_are_limited_and_given_back_when_cancelled() {
    let socket = UdpSocket::bind(ANY).unwrap();
    let mut probe = Probe::wasi3(listen(&[ANY])).await;
    let guest: SocketAddr = probe.run(&format!("udp-bind {ANY}")).await.parse().unwrap();
    for _ in 0..10 {
        assert_eq!(probe.run("cancel-receive 16").await, "16 ");
        assert_eq!(probe.run("cancel-receive 20").await, "16 out-of-memory");
    }
    socket.send_to(b"hello", guest).unwrap();
    assert_eq!(probe.run("udp-receive").await, "hello", "and no cancelled call has taken it");
}

#[tokio::test]
async fn names_are_looked_up_only_where_that_is_granted() {
    let mut probe = Probe::wasi3(both(&[ANY])).await;
    assert_eq!(probe.run("resolve localhost").await, "resolve: permanent-resolver-failure");
    let mut probe = Probe::wasi3(WasiGrants { name_lookup: true, ..WasiGrants::default() }).await;
    let addresses = probe.run("resolve localhost").await;
    assert!(addresses.split(',').all(|address| ["127.0.0.1", "::1"].contains(&address)), "{addresses}");
    assert_eq!(probe.run(&format!("resolve {}", "a".repeat(254))).await, "resolve: invalid-argument");
    for _ in 0..3 {
        assert_eq!(probe.run("cancel-resolve localhost 20").await, "20");
    }
    assert_eq!(probe.run("resolve localhost").await, addresses);
}
