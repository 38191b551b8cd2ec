//! A holder: a process without rights that fetches devices from `berthd` and drives them.
//!
//! It is the runner's own program under another verb, started through [`unpriv`], and does what it
//! is told over its standard input, one JSON line an order; what it sees it says on its output.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::{BufRead, BufReader, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use berth_uapi::{
    BoundDevice, Cdev, DevId, Device, Errno, IoasId, Iommufd, IovaChoice, PtId, RegionIndex,
    VfToken, VfioContainer, VfioGroup,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{Ctx, edu::Edu, gift, handover, memory::Memory, unpriv};

/// The first argument by which the runner's own program is told to be a holder.
pub const VERB: &str = "holder";
/// What holders may lock: the kernel's usual limit.
const MEMLOCK_BYTES: u64 = 8 << 20;
const PAGE: u64 = 4096;
/// QEMU's `edu`, by its device id.
const EDU: u16 = 0x11e8;
/// Where network cards of the igb family have their status register, virtual functions too.
const STATUS: u64 = 8;
/// Threads that map in a storm.
const MAPPERS: u64 = 3;

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
enum Order {
    Ping,
    Nodes { paths: Vec<PathBuf> },
    Ask { socket: PathBuf, request: Value, beside: Beside },
    Bind { device: String, token: Option<String> },
    Open { device: String, nodes: Vec<PathBuf>, token: Option<String> },
    Registers { device: String },
    Memory { pages: u64, sealed: bool },
    ReopenForReading { memory: usize },
    Truncate { memory: usize },
    Write { memory: usize, offset: u64, bytes: Vec<u8> },
    Read { memory: usize, offset: u64, length: usize },
    Map { memory: usize, iova: u64 },
    Unmap { iova: u64, length: u64 },
    CopyIn { device: String, iova: u64 },
    CopyOut { device: String, iova: u64 },
    Close,
    Give { device: String, socket: PathBuf },
    Take { socket: PathBuf },
    Start { device: String, words: Vec<String> },
    Become { device: String, words: Vec<String> },
    MakeSpaces { count: u32 },
    Space,
    Attach { device: String, space: u32 },
    Storm { device: String, memory: usize, iova: u64 },
}

/// What goes with a request.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Beside {
    Nothing,
    /// A memfd, by its number.
    Memory(usize),
    /// A pidfd of this process.
    Process(u32),
}

/// A running holder. Dropping it kills it.
#[derive(Debug)]
pub struct Holder {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    socket: PathBuf,
}

impl Holder {
    /// Starts one as `uid`, and checks that it has no capability and can't get any.
    ///
    /// # Errors
    /// It can't be started, or has rights.
    pub fn start(ctx: &Ctx, uid: u32, socket: PathBuf) -> Result<Self> {
        Self::start_with_env(ctx, uid, socket, &BTreeMap::new())
    }

    /// The same with variables in its environment.
    ///
    /// # Errors
    /// As [`Holder::start`].
    pub fn start_with_env(
        ctx: &Ctx,
        uid: u32,
        socket: PathBuf,
        envs: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let program = ctx.program("berth-testvm-guest");
        let mut command = unpriv::command(uid, Some(MEMLOCK_BYTES), &program)?;
        command.envs(envs).arg(VERB).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start a holder")?;
        let orders = child.stdin.take().context("no stdin")?;
        let answers = BufReader::new(child.stdout.take().context("no stdout")?);
        let mut holder = Self { child, orders, answers, socket };
        // It answers only after it dropped everything.
        holder.order::<()>(&Order::Ping)?;
        unpriv::ensure_powerless(holder.pid())?;
        Ok(holder)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn order<T: DeserializeOwned>(&mut self, order: &Order) -> Result<T> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.orders.write_all(&line).context("give the holder an order")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        let answer: Result<Value, String> = serde_json::from_str(&answer)
            .with_context(|| format!("the holder's answer to {order:?}: {answer:?}"))?;
        match answer {
            Ok(value) => Ok(serde_json::from_value(value)?),
            Err(error) => bail!("the holder: {error}"),
        }
    }

    /// Which of these files it can open: path and errno, 0 for those that open.
    ///
    /// # Errors
    /// It doesn't answer.
    pub fn opens(&mut self, paths: Vec<PathBuf>) -> Result<BTreeMap<PathBuf, i32>> {
        self.order(&Order::Nodes { paths })
    }

    /// Sends a request over the hand-over socket, with a memfd where one is named. Device and
    /// context descriptors of the answer stay with the holder. A refusal is an answer.
    ///
    /// # Errors
    /// `berthd` doesn't answer.
    pub fn ask(&mut self, request: Value, memory: Option<usize>) -> Result<Value> {
        self.ask_with(request, memory.map_or(Beside::Nothing, Beside::Memory))
    }

    fn ask_with(&mut self, request: Value, beside: Beside) -> Result<Value> {
        let socket = self.socket.clone();
        let answer = self.order(&Order::Ask { socket, request: request.clone(), beside })?;
        println!("hand-over, process {}: {request} with {beside:?} -> {answer}", self.pid());
        Ok(answer)
    }

    /// Fetches a reservation's descriptors in the name of another process. A refusal is an answer.
    ///
    /// # Errors
    /// `berthd` doesn't answer.
    pub fn fetch_for(&mut self, reservation: &str, process: u32) -> Result<Value> {
        let request = json!({"op": "fetch", "reservation": reservation});
        self.ask_with(request, Beside::Process(process))
    }

    /// Binds a cdev that it was handed to the iommufd that it was handed, attaches it to an I/O
    /// address space that it makes, and gives the errno of the bind, 0 for none.
    ///
    /// # Errors
    /// It was handed none, or anything after the bind fails.
    pub fn bind(&mut self, device: &str) -> Result<i32> {
        self.bind_by(device, None)
    }

    /// The same, with the VF token that is shown.
    ///
    /// # Errors
    /// As [`Holder::bind`].
    pub fn bind_by(&mut self, device: &str, token: Option<&str>) -> Result<i32> {
        self.order(&Order::Bind { device: device.to_owned(), token: token.map(str::to_owned) })
    }

    /// Opens a device by these nodes, as a program does that is given paths: its cdev and
    /// `/dev/iommu`, or its group and `/dev/vfio/vfio`. Gives the errno of the first that doesn't
    /// open, 0 for none.
    ///
    /// # Errors
    /// Anything after the opening fails.
    pub fn open(&mut self, device: &str, nodes: Vec<PathBuf>) -> Result<i32> {
        self.open_by(device, nodes, None)
    }

    /// The same, with the VF token that is shown.
    ///
    /// # Errors
    /// As [`Holder::open`].
    pub fn open_by(
        &mut self,
        device: &str,
        nodes: Vec<PathBuf>,
        token: Option<&str>,
    ) -> Result<i32> {
        let token = token.map(str::to_owned);
        self.order(&Order::Open { device: device.to_owned(), nodes, token })
    }

    /// Reads the ids of a device that it has open, vendor's first, and a word of its registers.
    ///
    /// # Errors
    /// It has no such device, or the device doesn't answer.
    pub fn registers(&mut self, device: &str) -> Result<(u16, u16, u32)> {
        self.order(&Order::Registers { device: device.to_owned() })
    }

    /// Fetches a reservation's descriptors.
    ///
    /// # Errors
    /// It is refused.
    pub fn fetch(&mut self, reservation: &str) -> Result<Value> {
        let answer = self.ask(json!({"op": "fetch", "reservation": reservation}), None)?;
        ensure!(answer["ok"] == true, "fetch of {reservation} was refused: {answer}");
        Ok(answer)
    }

    /// Registers memory with the reservation's domain, at an address.
    ///
    /// # Errors
    /// It is refused.
    pub fn register(&mut self, reservation: &str, memory: usize, iova: u64) -> Result<()> {
        let request = json!({
            "op": "register", "reservation": reservation, "iova": format!("{iova:#x}"),
            "lengthBytes": PAGE, "offset": 0, "write": true, "read": true,
        });
        let answer = self.ask(request, Some(memory))?;
        ensure!(answer["ok"] == true, "a registration was refused: {answer}");
        Ok(())
    }

    /// Takes a registration back.
    ///
    /// # Errors
    /// It is refused.
    pub fn unregister(&mut self, reservation: &str, iova: u64) -> Result<()> {
        let request = json!({
            "op": "unregister", "reservation": reservation, "iova": format!("{iova:#x}"),
            "lengthBytes": PAGE,
        });
        let answer = self.ask(request, None)?;
        ensure!(answer["ok"] == true, "the end of a registration was refused: {answer}");
        Ok(())
    }

    /// Makes sealed memory for DMA, all zeroes, and gives its number.
    ///
    /// # Errors
    /// There is none.
    pub fn memory(&mut self, pages: u64) -> Result<usize> {
        self.order(&Order::Memory { pages, sealed: true })
    }

    /// The same that can still shrink.
    ///
    /// # Errors
    /// There is none.
    pub fn loose_memory(&mut self, pages: u64) -> Result<usize> {
        self.order(&Order::Memory { pages, sealed: false })
    }

    /// Opens its memory once more, for reading only; that is a memory of its own number.
    ///
    /// # Errors
    /// It doesn't open.
    pub fn reopened_for_reading(&mut self, memory: usize) -> Result<usize> {
        self.order(&Order::ReopenForReading { memory })
    }

    /// Cuts its memory to nothing; false where the kernel refuses.
    ///
    /// # Errors
    /// It doesn't answer.
    pub fn truncate(&mut self, memory: usize) -> Result<bool> {
        self.order(&Order::Truncate { memory })
    }

    /// Writes to its memory.
    ///
    /// # Errors
    /// Beyond its end.
    pub fn write(&mut self, memory: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        self.order(&Order::Write { memory, offset, bytes: bytes.to_vec() })
    }

    /// Reads its memory.
    ///
    /// # Errors
    /// Beyond its end.
    pub fn read(&mut self, memory: usize, offset: u64, length: usize) -> Result<Vec<u8>> {
        self.order(&Order::Read { memory, offset, length })
    }

    /// Maps memory by itself, with the context's descriptor that it was handed.
    ///
    /// # Errors
    /// It was handed none, or the kernel refuses.
    pub fn map(&mut self, memory: usize, iova: u64) -> Result<()> {
        self.order(&Order::Map { memory, iova })
    }

    /// Unmaps by itself.
    ///
    /// # Errors
    /// As [`Holder::map`].
    pub fn unmap(&mut self, iova: u64, length: u64) -> Result<()> {
        self.order(&Order::Unmap { iova, length })
    }

    /// Lets its `edu` read a page at an I/O address.
    ///
    /// # Errors
    /// It was not handed that device, or the device is stuck.
    pub fn copy_in(&mut self, device: &str, iova: u64) -> Result<()> {
        self.order(&Order::CopyIn { device: device.to_owned(), iova })
    }

    /// Lets its `edu` write a page at an I/O address.
    ///
    /// # Errors
    /// As [`Holder::copy_in`].
    pub fn copy_out(&mut self, device: &str, iova: u64) -> Result<()> {
        self.order(&Order::CopyOut { device: device.to_owned(), iova })
    }

    /// Closes every descriptor that it was handed, and lives on.
    ///
    /// # Errors
    /// It doesn't answer.
    pub fn close(&mut self) -> Result<()> {
        self.order(&Order::Close)
    }

    pub(super) fn give(&mut self, device: &str, socket: &Path) -> Result<()> {
        self.order(&Order::Give { device: device.to_owned(), socket: socket.to_owned() })
    }

    pub(super) fn take(&mut self, socket: &Path) -> Result<()> {
        self.order(&Order::Take { socket: socket.to_owned() })
    }

    /// Starts a program that has a device's descriptor as its standard input, and gives its pid.
    ///
    /// # Errors
    /// It was not handed that device, or there is no such program.
    pub fn start_with(&mut self, device: &str, words: &[&str]) -> Result<u32> {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        self.order(&Order::Start { device: device.to_owned(), words })
    }

    /// Becomes another program, which has a device's descriptor as its standard input. It takes no
    /// orders any more.
    ///
    /// # Errors
    /// It was not handed that device.
    pub fn exec_with(&mut self, device: &str, words: &[&str]) -> Result<()> {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        self.order(&Order::Become { device: device.to_owned(), words })
    }

    /// Makes I/O address spaces that it has no use for in the iommufd that it was handed.
    ///
    /// # Errors
    /// It was handed none.
    pub fn make_spaces(&mut self, count: u32) -> Result<()> {
        self.order(&Order::MakeSpaces { count })
    }

    /// The id of the I/O address space that its devices are attached to.
    ///
    /// # Errors
    /// It has none.
    pub fn space(&mut self) -> Result<u32> {
        self.order(&Order::Space)
    }

    /// Attaches a device to an I/O address space by its id, and gives the errno, 0 for none.
    ///
    /// # Errors
    /// It was not handed that device.
    pub fn attach(&mut self, device: &str, space: u32) -> Result<i32> {
        self.order(&Order::Attach { device: device.to_owned(), space })
    }

    /// From now on it does nothing but map and unmap memory on several threads, and lets its `edu`
    /// write to the first page of it. It takes no orders any more.
    ///
    /// # Errors
    /// It was not handed what it takes.
    pub fn storm(&mut self, device: &str, memory: usize, iova: u64) -> Result<()> {
        self.order(&Order::Storm { device: device.to_owned(), memory, iova })
    }

    /// Kills it and waits until it is gone.
    ///
    /// # Errors
    /// The kernel doesn't let go of it.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Debug)]
enum Mapper {
    Iommufd(Iommufd, IoasId),
    Container(VfioContainer),
}

/// What the holder process has.
#[derive(Debug, Default)]
struct Hands {
    memories: Vec<Memory>,
    devices: BTreeMap<String, Edu>,
    // The registers are mapped; the descriptors are what keeps the claim alive.
    open: Vec<Device>,
    /// What other processes gave it.
    gifts: Vec<OwnedFd>,
    /// What it does when it has answered.
    storm: Option<Storm>,
    becomes: Option<Command>,
    started: Vec<Child>,
    group: Option<VfioGroup>,
    mapper: Option<Mapper>,
    /// What is still to be bound, and to what.
    cdevs: BTreeMap<String, Cdev>,
    unbound: Option<Iommufd>,
}

/// What the holder process does until its input ends.
///
/// # Errors
/// Its pipes broke.
pub fn serve() -> Result<()> {
    let mut hands = Hands::default();
    let mut output = std::io::stdout();
    for line in std::io::stdin().lines() {
        let answer: Result<Value, String> = serde_json::from_str(&line?)
            .map_err(anyhow::Error::from)
            .and_then(|order| hands.obey(order))
            .map_err(|error| format!("{error:#}"));
        let mut bytes = serde_json::to_vec(&answer)?;
        bytes.push(b'\n');
        output.write_all(&bytes)?;
        output.flush()?;
        if let Some(storm) = hands.storm.take() {
            hands.rage(&storm)?;
        }
        if let Some(mut command) = hands.becomes.take() {
            return Err(command.exec().into());
        }
    }
    Ok(())
}

/// A device, and memory that it writes to while that comes and goes.
#[derive(Debug)]
struct Storm {
    device: String,
    memory: usize,
    iova: u64,
}

impl Hands {
    fn obey(&mut self, order: Order) -> Result<Value> {
        match order {
            Order::Ping => {}
            Order::Nodes { paths } => {
                let tried: BTreeMap<_, _> =
                    paths.into_iter().map(|path| (path.clone(), errno_of_open(&path))).collect();
                return Ok(serde_json::to_value(tried)?);
            }
            Order::Ask { socket, request, beside } => return self.ask(&socket, &request, beside),
            Order::Bind { device, token } => return Ok(json!(self.bind(&device, read(token)?)?)),
            Order::Open { device, nodes, token } => {
                return Ok(json!(self.open(&device, &nodes, read(token)?)?));
            }
            Order::Registers { device } => return Ok(json!(self.registers(&device)?)),
            Order::Memory { pages, sealed } => {
                let make = if sealed { Memory::sealed } else { Memory::new };
                return Ok(self.add(make(pages * PAGE)?));
            }
            Order::ReopenForReading { memory } => {
                let again = self.at(memory)?.reopened_for_reading()?;
                return Ok(self.add(again));
            }
            Order::Truncate { memory } => return Ok(json!(self.at(memory)?.truncate())),
            Order::Write { memory, offset, bytes } => self.at(memory)?.write(offset, &bytes)?,
            Order::Read { memory, offset, length } => {
                return Ok(json!(self.at(memory)?.read(offset, length)?));
            }
            Order::Map { memory, iova } => self.mapper()?.map(self.at(memory)?, iova)?,
            Order::Unmap { iova, length } => self.mapper()?.unmap(iova, length)?,
            Order::CopyIn { device, iova } => self.edu(&device)?.copy_in(iova, PAGE)?,
            Order::CopyOut { device, iova } => self.edu(&device)?.copy_out(iova, PAGE)?,
            Order::Close => {
                self.devices.clear();
                self.open.clear();
                self.gifts.clear();
                self.group = None;
                self.mapper = None;
                self.cdevs.clear();
                self.unbound = None;
            }
            Order::MakeSpaces { count } => {
                let context = self.unbound.as_ref().context("no iommufd was handed over")?;
                for _ in 0..count {
                    context.ioas_alloc()?;
                }
            }
            Order::Space => match &self.mapper {
                Some(Mapper::Iommufd(_, space)) => return Ok(json!(space.0)),
                _ => bail!("no I/O address space"),
            },
            Order::Attach { device, space } => return Ok(json!(self.attach(&device, space)?)),
            Order::Storm { device, memory, iova } => {
                self.edu(&device)?;
                self.at(memory)?;
                self.storm = Some(Storm { device, memory, iova });
            }
            Order::Give { device, socket } => gift::give(&socket, self.device(&device)?)?,
            Order::Take { socket } => self.gifts.push(gift::receive(&socket)?),
            Order::Become { device, words } => self.becomes = Some(self.program(&device, &words)?),
            Order::Start { device, words } => {
                let mut command = self.program(&device, &words)?;
                let child = command.spawn().with_context(|| format!("start {words:?}"))?;
                let pid = child.id();
                self.started.push(child);
                return Ok(json!(pid));
            }
        }
        Ok(Value::Null)
    }

    fn add(&mut self, memory: Memory) -> Value {
        self.memories.push(memory);
        json!(self.memories.len() - 1)
    }

    /// A program with a device's descriptor as its standard input.
    fn program(&self, device: &str, words: &[String]) -> Result<Command> {
        let [program, arguments @ ..] = words else { bail!("no program") };
        let fd = self.device(device)?.as_fd().try_clone_to_owned()?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::from(fd)).stdout(Stdio::null());
        Ok(command)
    }

    fn attach(&self, address: &str, space: u32) -> Result<i32> {
        let fd = self.device(address)?.as_fd().try_clone_to_owned()?;
        let device = BoundDevice::from_fd(fd, DevId(0), address);
        let attached = device.attach_pt(PtId::Ioas(IoasId(space)));
        Ok(attached.err().map_or(0, |error| error.errno().raw_os_error()))
    }

    /// Until it is killed. What the kernel refuses meanwhile is what this is about.
    fn rage(&self, storm: &Storm) -> Result<()> {
        let edu = self.edu(&storm.device)?;
        let (mapper, memory) = (self.mapper()?, self.at(storm.memory)?);
        std::thread::scope(|scope| {
            for thread in 0..MAPPERS {
                let iova = storm.iova + thread % 2 * PAGE;
                scope.spawn(move || {
                    loop {
                        let _ = mapper.map(memory, iova);
                        let _ = mapper.unmap(iova, PAGE);
                    }
                });
            }
            loop {
                let _ = edu.copy_out(storm.iova, PAGE);
            }
        })
    }

    fn device(&self, address: &str) -> Result<&Device> {
        let device = self.open.iter().find(|device| device.name() == address);
        device.with_context(|| format!("{address} was not handed over"))
    }

    fn at(&self, memory: usize) -> Result<&Memory> {
        self.memories.get(memory).context("no such memory")
    }

    fn edu(&self, device: &str) -> Result<&Edu> {
        self.devices.get(device).with_context(|| format!("{device} was not handed over"))
    }

    fn ask(&mut self, socket: &Path, request: &Value, beside: Beside) -> Result<Value> {
        let packet = match beside {
            Beside::Nothing => handover::ask(socket, request, &[])?,
            Beside::Memory(memory) => {
                handover::ask(socket, request, &[self.at(memory)?.file().as_fd()])?
            }
            Beside::Process(pid) => handover::ask_for(socket, request, pid)?,
        };
        let infos = packet.json["fds"].as_array().cloned().unwrap_or_default();
        ensure!(infos.len() == packet.fds.len(), "{} fds: {}", packet.fds.len(), packet.json);
        for (info, fd) in infos.iter().zip(packet.fds) {
            let ioas = info["ioasId"].as_u64().unwrap_or_default();
            match info["kind"].as_str() {
                Some("device") => {
                    let address = info["address"].as_str().context("a device without address")?;
                    let device = Device::from_fd(fd, address);
                    self.devices.insert(address.to_owned(), Edu::on_vfio(&device)?);
                    self.open.push(device);
                }
                Some("cdev") => {
                    let address = info["address"].as_str().context("a cdev without address")?;
                    self.cdevs.insert(address.to_owned(), Cdev::from_fd(fd, address));
                }
                Some("iommufd") if info["ioasId"].is_null() => {
                    self.unbound = Some(Iommufd::from(fd));
                }
                Some("iommufd") => {
                    let ioas = IoasId(u32::try_from(ioas)?);
                    self.mapper = Some(Mapper::Iommufd(Iommufd::from(fd), ioas));
                }
                Some("container") => {
                    self.mapper = Some(Mapper::Container(VfioContainer::from_fd(fd, "handed")));
                }
                other => bail!("a descriptor of unknown kind {other:?}"),
            }
        }
        Ok(packet.json)
    }

    fn registers(&self, address: &str) -> Result<(u16, u16, u32)> {
        let device = self.device(address)?;
        let (mut ids, mut word) = ([0; 4], [0; 4]);
        device.read_region(RegionIndex::CONFIG, 0, &mut ids)?;
        device.read_region(RegionIndex(0), STATUS, &mut word)?;
        let [vendor, id] = [[ids[0], ids[1]], [ids[2], ids[3]]].map(u16::from_le_bytes);
        Ok((vendor, id, u32::from_le_bytes(word)))
    }

    /// What is opened is driven where it is an `edu`.
    fn keep(&mut self, device: Device, id: u16) -> Result<()> {
        if id == EDU {
            self.devices.insert(device.name().to_owned(), Edu::on_vfio(&device)?);
        }
        self.open.push(device);
        Ok(())
    }

    fn bind(&mut self, address: &str, token: Option<VfToken>) -> Result<i32> {
        let cdev = self.cdevs.remove(address).context("no cdev was handed over")?;
        let context = self.unbound.take().context("no iommufd was handed over")?;
        let errno = self.bind_to(address, (cdev, token), &context)?;
        self.unbound = Some(context);
        Ok(errno)
    }

    fn bind_to(
        &mut self,
        address: &str,
        (cdev, token): (Cdev, Option<VfToken>),
        context: &Iommufd,
    ) -> Result<i32> {
        let bound = match cdev.bind_iommufd(context, token.as_ref()) {
            Ok(bound) => bound,
            Err(failed) => return Ok(failed.error.errno().raw_os_error()),
        };
        let ioas = match &self.mapper {
            Some(Mapper::Iommufd(_, ioas)) => *ioas,
            _ => context.ioas_alloc()?,
        };
        bound.attach_pt(PtId::Ioas(ioas))?;
        let id = id_of(bound.device())?;
        self.keep(Device::from_fd(bound.into_fd(), address), id)?;
        self.mapper = Some(Mapper::Iommufd(context.try_clone()?, ioas));
        Ok(0)
    }

    fn open(&mut self, address: &str, nodes: &[PathBuf], token: Option<VfToken>) -> Result<i32> {
        let [device, context] = nodes else { bail!("the nodes of one device are two: {nodes:?}") };
        if context.ends_with("iommu") {
            let context = match Iommufd::open_path(context) {
                Ok(context) => context,
                Err(error) => return Ok(error.errno().raw_os_error()),
            };
            return match Cdev::open(device, address) {
                Ok(cdev) => self.bind_to(address, (cdev, token), &context),
                Err(error) => Ok(error.errno().raw_os_error()),
            };
        }
        let container = match VfioContainer::open_path(context) {
            Ok(container) => container,
            Err(error) => return Ok(error.errno().raw_os_error()),
        };
        let group = match VfioGroup::open_path(device) {
            Ok(group) => group,
            Err(error) => return Ok(error.errno().raw_os_error()),
        };
        group.set_container(&container)?;
        container.set_iommu_type1v2()?;
        let token = token.map(|token| token.text());
        let opened = match group.get_device_fd(address, token.as_deref()) {
            Ok(opened) => opened,
            Err(error) => return Ok(error.errno().raw_os_error()),
        };
        let id = id_of(&opened)?;
        self.keep(opened, id)?;
        self.group = Some(group);
        self.mapper = Some(Mapper::Container(container));
        Ok(0)
    }

    fn mapper(&self) -> Result<&Mapper> {
        self.mapper.as_ref().context("no context was handed over")
    }
}

impl Mapper {
    fn map(&self, memory: &Memory, iova: u64) -> Result<()> {
        match self {
            Self::Iommufd(context, ioas) => {
                memory.map_iommufd(context, *ioas, IovaChoice::Fixed(iova))?;
            }
            Self::Container(container) => memory.map_type1(container, iova)?,
        }
        Ok(())
    }

    fn unmap(&self, iova: u64, length: u64) -> Result<()> {
        let unmapped = match self {
            Self::Iommufd(context, ioas) => context.unmap(*ioas, iova, length)?,
            Self::Container(container) => container.unmap_dma(iova, length)?,
        };
        ensure!(unmapped == length, "{unmapped} bytes were unmapped, not {length}");
        Ok(())
    }
}

fn read(token: Option<String>) -> Result<Option<VfToken>> {
    let parsed = |text: String| VfToken::parse(&text).context("a VF token that is no UUID");
    token.map(parsed).transpose()
}

fn id_of(device: &Device) -> Result<u16> {
    let mut id = [0; 2];
    device.read_region(RegionIndex::CONFIG, 2, &mut id)?;
    Ok(u16::from_le_bytes(id))
}

fn errno_of_open(path: &Path) -> i32 {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(Errno::IO.raw_os_error()),
    }
}
