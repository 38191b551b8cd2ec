//! A holder: a process without rights that fetches devices from `berthd` and drives them.
//!
//! It is the runner's own program under another verb, started through [`unpriv`], and does what it
//! is told over its standard input, one JSON line an order; what it sees it says on its output.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::{BufRead, BufReader, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use berth_uapi::{
    Cdev, Device, Errno, IoasId, Iommufd, IovaChoice, PtId, VfioContainer, VfioGroup,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{Ctx, edu::Edu, handover, memory::Memory, unpriv};

/// The first argument by which the runner's own program is told to be a holder.
pub const VERB: &str = "holder";
/// What holders may lock: the kernel's usual limit.
const MEMLOCK_BYTES: u64 = 8 << 20;
const PAGE: u64 = 4096;

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
enum Order {
    Ping,
    Nodes { paths: Vec<PathBuf> },
    Ask { socket: PathBuf, request: Value, beside: Beside },
    Bind { device: String },
    Open { device: String, nodes: Vec<PathBuf> },
    Memory { pages: u64, sealed: bool },
    Write { memory: usize, offset: u64, bytes: Vec<u8> },
    Read { memory: usize, offset: u64, length: usize },
    Map { memory: usize, iova: u64 },
    Unmap { iova: u64, length: u64 },
    CopyIn { device: String, iova: u64 },
    CopyOut { device: String, iova: u64 },
    Close,
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
        let program = ctx.program("berth-testvm-guest");
        let mut command = unpriv::command(uid, Some(MEMLOCK_BYTES), &program)?;
        command.arg(VERB).stdin(Stdio::piped()).stdout(Stdio::piped());
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
        self.order(&Order::Bind { device: device.to_owned() })
    }

    /// Opens a device by these nodes, as a program does that is given paths: its cdev and
    /// `/dev/iommu`, or its group and `/dev/vfio/vfio`. Gives the errno of the first that doesn't
    /// open, 0 for none.
    ///
    /// # Errors
    /// Anything after the opening fails.
    pub fn open(&mut self, device: &str, nodes: Vec<PathBuf>) -> Result<i32> {
        self.order(&Order::Open { device: device.to_owned(), nodes })
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

    /// The same that can be truncated.
    ///
    /// # Errors
    /// There is none.
    pub fn loose_memory(&mut self, pages: u64) -> Result<usize> {
        self.order(&Order::Memory { pages, sealed: false })
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
    }
    Ok(())
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
            Order::Bind { device } => return Ok(json!(self.bind(&device)?)),
            Order::Open { device, nodes } => return Ok(json!(self.open(&device, &nodes)?)),
            Order::Memory { pages, sealed } => {
                let make = if sealed { Memory::sealed } else { Memory::new };
                self.memories.push(make(pages * PAGE)?);
                return Ok(json!(self.memories.len() - 1));
            }
            Order::Write { memory, offset, bytes } => self.at(memory)?.write(offset, &bytes)?,
            Order::Read { memory, offset, length } => {
                return Ok(json!(self.at(memory)?.read(offset, length)?));
            }
            Order::Map { memory, iova } => self.map(memory, iova)?,
            Order::Unmap { iova, length } => self.unmap(iova, length)?,
            Order::CopyIn { device, iova } => self.edu(&device)?.copy_in(iova, PAGE)?,
            Order::CopyOut { device, iova } => self.edu(&device)?.copy_out(iova, PAGE)?,
            Order::Close => {
                self.devices.clear();
                self.open.clear();
                self.group = None;
                self.mapper = None;
                self.cdevs.clear();
                self.unbound = None;
            }
        }
        Ok(Value::Null)
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

    fn bind(&mut self, address: &str) -> Result<i32> {
        let cdev = self.cdevs.remove(address).context("no cdev was handed over")?;
        let context = self.unbound.take().context("no iommufd was handed over")?;
        let errno = self.bind_to(address, cdev, &context)?;
        self.unbound = Some(context);
        Ok(errno)
    }

    fn bind_to(&mut self, address: &str, cdev: Cdev, context: &Iommufd) -> Result<i32> {
        let bound = match cdev.bind_iommufd(context, None) {
            Ok(bound) => bound,
            Err(failed) => return Ok(failed.error.errno().raw_os_error()),
        };
        let ioas = match &self.mapper {
            Some(Mapper::Iommufd(_, ioas)) => *ioas,
            _ => context.ioas_alloc()?,
        };
        bound.attach_pt(PtId::Ioas(ioas))?;
        self.devices.insert(address.to_owned(), Edu::on_vfio(bound.device())?);
        self.open.push(Device::from_fd(bound.into_fd(), address));
        self.mapper = Some(Mapper::Iommufd(context.try_clone()?, ioas));
        Ok(0)
    }

    fn open(&mut self, address: &str, nodes: &[PathBuf]) -> Result<i32> {
        let [device, context] = nodes else { bail!("the nodes of one device are two: {nodes:?}") };
        if context.ends_with("iommu") {
            let context = match Iommufd::open_path(context) {
                Ok(context) => context,
                Err(error) => return Ok(error.errno().raw_os_error()),
            };
            return match Cdev::open(device, address) {
                Ok(cdev) => self.bind_to(address, cdev, &context),
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
        let opened = group.get_device_fd(address, None)?;
        self.devices.insert(address.to_owned(), Edu::on_vfio(&opened)?);
        self.open.push(opened);
        self.group = Some(group);
        self.mapper = Some(Mapper::Container(container));
        Ok(0)
    }

    fn map(&self, memory: usize, iova: u64) -> Result<()> {
        let memory = self.at(memory)?;
        match self.mapper.as_ref().context("no context was handed over")? {
            Mapper::Iommufd(context, ioas) => {
                memory.map_iommufd(context, *ioas, IovaChoice::Fixed(iova))?;
            }
            Mapper::Container(container) => memory.map_type1(container, iova)?,
        }
        Ok(())
    }

    fn unmap(&self, iova: u64, length: u64) -> Result<()> {
        let unmapped = match self.mapper.as_ref().context("no context was handed over")? {
            Mapper::Iommufd(context, ioas) => context.unmap(*ioas, iova, length)?,
            Mapper::Container(container) => container.unmap_dma(iova, length)?,
        };
        ensure!(unmapped == length, "{unmapped} bytes were unmapped, not {length}");
        Ok(())
    }
}

fn errno_of_open(path: &Path) -> i32 {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(Errno::IO.raw_os_error()),
    }
}
