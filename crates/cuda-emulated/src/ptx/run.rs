//! Runs kernels: block after block, of each the threads by turns, up to where they wait.

use super::memory::{Global, Shared};
use super::{Access, Action, Area, Kernel, Shuffle, Special};

/// Threads that shuffle among each other.
const WARP: usize = 32;

/// Instructions of a thread at most: more is a loop without an end.
const MOST_STEPS: u64 = 1 << 26;

/// A kernel and what it is given.
#[derive(Debug)]
pub(crate) struct Launch<'k> {
    pub(crate) kernel: &'k Kernel,
    pub(crate) blocks: u32,
    pub(crate) threads: u32,
    /// Bytes of a block's own memory.
    pub(crate) shared: usize,
    pub(crate) parameters: &'k [u8],
    /// What is in memory that nobody wrote.
    pub(crate) poison: u8,
}

/// Runs all blocks.
///
/// # Errors
/// Words on what a thread did that it may not; blocks before it are done.
pub(crate) fn run<M: Global>(launch: &Launch<'_>, memory: &mut M) -> Result<(), String> {
    let threads = launch.threads as usize;
    let mut block = Block {
        launch,
        memory,
        shared: Shared::new(launch.shared),
        registers: vec![0; threads * launch.kernel.registers],
        threads: Vec::new(),
    };
    for number in 0..launch.blocks {
        block
            .run(number)
            .map_err(|error| format!("kernel {}, block {number}: {error}", launch.kernel.name))?;
    }
    Ok(())
}

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    Nothing,
    Shuffle,
    Barrier,
    /// It has returned.
    Done,
}

#[derive(Clone, Copy, Debug)]
struct Thread {
    next: usize,
    steps: u64,
    wait: Wait,
}

struct Block<'l, M> {
    launch: &'l Launch<'l>,
    memory: &'l mut M,
    shared: Shared,
    /// Those of thread after thread.
    registers: Vec<u64>,
    threads: Vec<Thread>,
}

impl<M: Global> Block<'_, M> {
    fn run(&mut self, number: u32) -> Result<(), String> {
        self.begin(number);
        loop {
            for first in (0..self.threads.len()).step_by(WARP) {
                self.run_warp(first)?;
            }
            let waiting = self.threads.iter().filter(|thread| thread.wait == Wait::Barrier).count();
            if waiting == 0 {
                return Ok(());
            }
            if waiting < self.threads.len() {
                return Err(format!(
                    "{waiting} of {} threads wait at a barrier, the others have returned",
                    self.threads.len()
                ));
            }
            self.shared.barriers += 1;
            self.threads.iter_mut().for_each(|thread| thread.wait = Wait::Nothing);
        }
    }

    fn begin(&mut self, number: u32) {
        let Launch { kernel, blocks, threads, poison, .. } = *self.launch;
        self.shared.begin(poison);
        self.registers.fill(u64::from_ne_bytes([poison; 8]));
        let start = Thread { next: 0, steps: 0, wait: Wait::Nothing };
        self.threads = vec![start; threads as usize];
        for (thread, registers) in (0..).zip(self.registers.chunks_mut(kernel.registers.max(1))) {
            for (place, value) in &kernel.constants {
                registers[*place] = *value;
            }
            for (place, special) in &kernel.specials {
                registers[*place] = u64::from(match special {
                    Special::Thread => thread,
                    Special::Threads => threads,
                    Special::Block => number,
                    Special::Blocks => blocks,
                });
            }
        }
    }

    /// Runs the threads of a warp until they have returned or wait at a barrier.
    fn run_warp(&mut self, first: usize) -> Result<(), String> {
        let warp = first..(first + WARP).min(self.threads.len());
        loop {
            for thread in warp.clone() {
                if self.threads[thread].wait == Wait::Nothing {
                    self.run_thread(thread).map_err(|error| format!("thread {thread}: {error}"))?;
                }
            }
            let Some(shuffling) =
                warp.clone().find(|thread| self.threads[*thread].wait == Wait::Shuffle)
            else {
                return Ok(());
            };
            self.shuffle(first, shuffling)?;
        }
    }

    /// Lets the threads of a warp exchange values, where `one` waits to.
    fn shuffle(&mut self, first: usize, one: usize) -> Result<(), String> {
        let place = self.threads[one].next;
        let Action::Shuffle(shuffle) = self.launch.kernel.instructions[place].action else {
            return Err("a shuffle that is none".to_owned());
        };
        let Shuffle { to, is_there, from, distance, bounds, members } = shuffle;
        let own = |registers: &[u64], lane: usize, register: usize| {
            registers[(first + lane) * self.launch.kernel.registers + register]
        };
        let members = own(&self.registers, one - first, members);
        let mut values = [0; WARP];
        for lane in (0..WARP).filter(|lane| members >> lane & 1 == 1) {
            let thread = self.threads.get(first + lane);
            if thread.is_none_or(|thread| thread.wait != Wait::Shuffle || thread.next != place) {
                return Err(format!("thread {} is missed by those it shuffles with", first + lane));
            }
            values[lane] = own(&self.registers, lane, from) & 0xffff_ffff;
        }
        for lane in (0..WARP).filter(|lane| members >> lane & 1 == 1) {
            let bounds = own(&self.registers, lane, bounds) as usize;
            let (clamp, segment) = (bounds & 31, bounds >> 8 & 31);
            let last = lane & segment | clamp & !segment;
            let source = lane + (own(&self.registers, lane, distance) as usize & 31);
            let is_inside = source <= last;
            let source = if is_inside { source } else { lane };
            if members >> source & 1 == 0 {
                return Err(format!("thread {} reads of one that gives nothing", first + lane));
            }
            let registers = (first + lane) * self.launch.kernel.registers;
            self.registers[registers + to] = values[source];
            if let Some(is_there) = is_there {
                self.registers[registers + is_there] = u64::from(is_inside);
            }
            let thread = &mut self.threads[first + lane];
            thread.next += 1;
            thread.wait = Wait::Nothing;
        }
        Ok(())
    }

    /// Runs a thread until it waits.
    fn run_thread(&mut self, number: usize) -> Result<(), String> {
        let kernel = self.launch.kernel;
        let Thread { mut next, mut steps, .. } = self.threads[number];
        let first = number * kernel.registers;
        let wait = loop {
            let Some(instruction) = kernel.instructions.get(next) else { break Wait::Done };
            steps += 1;
            if steps > MOST_STEPS {
                return Err(format!("more than {MOST_STEPS} instructions"));
            }
            let registers = &mut self.registers[first..first + kernel.registers];
            let is_given = instruction
                .guard
                .is_none_or(|(register, value)| (registers[register] != 0) == value);
            if !is_given {
                next += 1;
                continue;
            }
            match &instruction.action {
                Action::Compute { operation, to, from } => {
                    registers[*to] = operation.compute(from.map(|place| registers[place]))?;
                }
                Action::Branch(to) => {
                    next = *to;
                    continue;
                }
                Action::Load(access) => self.load(number, access)?,
                Action::Store(access) => self.store(number, access)?,
                Action::LowerTo(access) => self.lower(number, access)?,
                Action::Shuffle(_) => break Wait::Shuffle,
                Action::Barrier => {
                    next += 1;
                    break Wait::Barrier;
                }
                Action::Return => break Wait::Done,
            }
            next += 1;
        };
        self.threads[number] = Thread { next, steps, wait };
        Ok(())
    }

    /// The registers of a thread.
    fn own(&mut self, thread: usize) -> &mut [u64] {
        let count = self.launch.kernel.registers;
        &mut self.registers[thread * count..(thread + 1) * count]
    }

    /// Where `access` is, and how many bytes it has.
    fn place(&mut self, thread: usize, access: &Access) -> Result<(u64, usize), String> {
        let address = self.own(thread)[access.base].wrapping_add_signed(access.offset);
        let length = access.size * access.values.len();
        if address.is_multiple_of(length as u64) {
            Ok((address, length))
        } else {
            Err(format!("{length} bytes at {address:#x}, which is no multiple of that"))
        }
    }

    fn load(&mut self, thread: usize, access: &Access) -> Result<(), String> {
        let (address, length) = self.place(thread, access)?;
        let mut bytes = [0_u8; 32];
        let into = &mut bytes[..length];
        match access.area {
            Area::Global => self.memory.read(address, into)?,
            Area::Shared => self.shared.read(address, into, thread as u32)?,
            Area::Parameters => {
                let parameters = self.launch.parameters;
                let given = parameters.get(address as usize..).and_then(|at| at.get(..length));
                into.copy_from_slice(given.ok_or("a parameter that is not there")?);
            }
        }
        let registers = self.own(thread);
        for (register, value) in access.values.iter().zip(bytes.chunks(access.size)) {
            let mut wide = [0; 8];
            wide[..access.size].copy_from_slice(value);
            registers[*register] = u64::from_le_bytes(wide);
        }
        Ok(())
    }

    fn store(&mut self, thread: usize, access: &Access) -> Result<(), String> {
        let (address, length) = self.place(thread, access)?;
        let mut bytes = [0_u8; 32];
        let registers = self.own(thread);
        for (register, value) in access.values.iter().zip(bytes.chunks_mut(access.size)) {
            value.copy_from_slice(&registers[*register].to_le_bytes()[..access.size]);
        }
        match access.area {
            Area::Global => self.memory.write(address, &bytes[..length]),
            Area::Shared => self.shared.write(address, &bytes[..length], thread as u32),
            Area::Parameters => Err("a parameter is written".to_owned()),
        }
    }

    fn lower(&mut self, thread: usize, access: &Access) -> Result<(), String> {
        let (address, _) = self.place(thread, access)?;
        let mut there = [0; 4];
        self.memory.read(address, &mut there)?;
        let given = self.own(thread)[access.values[0]] as u32;
        let least = u32::from_le_bytes(there).min(given);
        self.memory.write(address, &least.to_le_bytes())
    }
}
