//! Two network namespaces with a TUN device each and the [`Router`] between them. Made by `ip`, removed when dropped.
//!
//! A thread moves into a namespace and stays there; what it starts, and sockets that it opens, are there too. So both
//! ends of a connection are in one process, and one clock stamps what is sent and what arrives.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsFd as _,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tun_rs::{DeviceBuilder, SyncDevice};

use super::{
    link::Settings,
    router::{Router, Tallies},
};

/// What an Ethernet carries.
const MTU: u16 = 1500;

/// Networks of this process so far.
static MADE: AtomicU32 = AtomicU32::new(0);

/// Where a server is reached, and from where: the pair selects the server's TCP congestion control.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Route {
    pub(crate) server: IpAddr,
    pub(crate) client: IpAddr,
}

impl Route {
    const fn of(number: u8) -> Self {
        Self {
            server: IpAddr::V4(Ipv4Addr::new(10, 177, number, 1)),
            client: IpAddr::V4(Ipv4Addr::new(10, 177, number, 2)),
        }
    }
}

/// One namespace.
#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    fn add(name: String) -> anyhow::Result<Self> {
        ip(&["netns", "add", &name])?;
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Runs `ip` in the namespace.
    fn ip(&self, arguments: &[&str]) -> anyhow::Result<()> {
        ip(&[&["-n", &self.name], arguments].concat())
    }

    /// Moves the calling thread there, for good.
    ///
    /// # Errors
    /// When this process may not.
    pub(crate) fn enter(&self) -> anyhow::Result<()> {
        let link = File::open(format!("/run/netns/{}", self.name)).context("open a namespace")?;
        move_into_link_name_space(link.as_fd(), Some(LinkNameSpaceType::Network)).context("enter a namespace")
    }

    /// Takes a device, with an address for each route at this end and a way to the other.
    fn take(&self, device: &str, ends: &[(IpAddr, IpAddr, &str)]) -> anyhow::Result<()> {
        ip(&["link", "set", device, "netns", &self.name])?;
        // Neighbour and router discovery would be packets that nobody sent.
        self.ip(&["link", "set", device, "addrgenmode", "none"])?;
        self.ip(&["link", "set", device, "mtu", &MTU.to_string(), "up"])?;
        for (own, other, congestion) in ends {
            self.ip(&["address", "add", &format!("{own}/32"), "dev", device])?;
            let (own, other) = (own.to_string(), other.to_string());
            self.ip(&["route", "add", &other, "dev", device, "src", &own, "congctl", congestion])?;
        }
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(ip(&["netns", "delete", &self.name]));
    }
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments).output().context("run `ip`")?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`ip {}`: {}", arguments.join(" "), told.trim());
    Ok(())
}

/// The server's side, the client's side, and the link.
#[derive(Debug)]
pub(crate) struct Network {
    router: Router,
    pub(crate) server: Namespace,
    pub(crate) client: Namespace,
    /// in the order of the congestion controls
    pub(crate) routes: Vec<Route>,
}

impl Network {
    /// Makes a network with a route for each TCP congestion control, which holds at both ends of it.
    ///
    /// `down` is the way from the server to the client, `up` the way back.
    ///
    /// # Errors
    /// When this machine does not let the caller make namespaces and TUN devices, or has not that congestion control.
    pub(crate) fn new(congestion: &[&str], [down, up]: [Settings; 2], seed: u64) -> anyhow::Result<Self> {
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let add = |end: &str| Namespace::add(format!("chatbox-lab-{process}-{number}-{end}"));
        let (server, client) = (add("server")?, add("client")?);
        let device = |end: &str| {
            let name = format!("lab{process}-{number}{end}");
            Ok::<_, anyhow::Error>((tun(&name).with_context(|| format!("make the TUN device {name}"))?, name))
        };
        let ((server_device, server_name), (client_device, client_name)) = (device("s")?, device("c")?);
        let numbers = 1..;
        let routes: Vec<_> = congestion.iter().zip(numbers).map(|(_, number)| Route::of(number)).collect();
        let ends = routes.iter().zip(congestion);
        server.take(&server_name, &ends.clone().map(|(it, by)| (it.server, it.client, *by)).collect::<Vec<_>>())?;
        client.take(&client_name, &ends.map(|(it, by)| (it.client, it.server, *by)).collect::<Vec<_>>())?;
        let router = Router::start([server_device, client_device], [down, up], seed)?;
        Ok(Self { router, server, client, routes })
    }

    /// What happened to the packets from the server to the client, and back.
    pub(crate) fn tallies(&self) -> [Tallies; 2] {
        self.router.tallies()
    }
}

/// A device without offloads: what is read from it is what would be on the wire.
fn tun(name: &str) -> std::io::Result<SyncDevice> {
    DeviceBuilder::new().name(name).mtu(MTU).offload(false).enable(false).build_sync()
}
