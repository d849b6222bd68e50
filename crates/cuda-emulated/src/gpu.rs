//! A GPU for a test.

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use libloading::Library;

/// A GPU that one test has for itself: the machine's, or an emulated one. What a test makes on it must
/// be gone before it: make it first. An emulated one then fails the test where anything was done that
/// a real GPU would not do, or is left.
#[derive(Debug)]
pub struct Gpu {
    emulated: Option<&'static Emulated>,
    _turn: MutexGuard<'static, ()>,
}

/// The functions of an emulated driver that CUDA does not have.
#[derive(Debug)]
pub struct Emulated {
    reset: extern "C" fn(),
    fail: extern "C" fn(u64),
    allocations: extern "C" fn() -> u64,
    violations: unsafe extern "C" fn(*mut u8, usize) -> usize,
    live: unsafe extern "C" fn(*mut u8, usize) -> usize,
}

/// Files that the driver of a real GPU has made.
const REAL: [&str; 2] = ["/dev/nvidiactl", "/dev/dxg"];

impl Gpu {
    /// Waits for the test's turn. The first call of a process decides whether its GPUs are real ones.
    ///
    /// # Panics
    /// Where the emulated driver is not beside the test.
    #[must_use]
    pub fn new() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        static EMULATED: OnceLock<Option<Emulated>> = OnceLock::new();
        // A test that failed has said so.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let is_real = || REAL.iter().any(|file| Path::new(file).exists());
        let emulated = EMULATED.get_or_init(|| (!is_real()).then(Emulated::open)).as_ref();
        if let Some(emulated) = emulated {
            (emulated.reset)();
        }
        Gpu { emulated, _turn: turn }
    }

    /// The driver, where it is emulated.
    #[must_use]
    pub fn emulated(&self) -> Option<&'static Emulated> {
        self.emulated
    }
}

impl Default for Gpu {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        let Some(emulated) = self.emulated.filter(|_| !std::thread::panicking()) else { return };
        // Asked first, for it ends the work that is left.
        let live = emulated.live();
        assert_eq!(emulated.violations(), [""; 0], "no GPU would do that");
        assert_eq!(live, [""; 0], "left on the GPU");
    }
}

impl Emulated {
    /// Opens the driver, so that whoever opens `libcuda.so` in this process gets it.
    fn open() -> Self {
        let path = library();
        // SAFETY: the library is this crate's and does nothing when it is opened.
        let library = unsafe { Library::new(&path) };
        let library = library.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        // It is never closed.
        let library = Box::leak(Box::new(library));
        // SAFETY: the types are those of the functions of these names.
        unsafe {
            Emulated {
                reset: named(library, c"imprompt_emulated_reset"),
                fail: named(library, c"imprompt_emulated_fail"),
                allocations: named(library, c"imprompt_emulated_allocations"),
                violations: named(library, c"imprompt_emulated_violations"),
                live: named(library, c"imprompt_emulated_live"),
            }
        }
    }

    /// Lets the allocation `number`, counted from now on and from 1, fail for want of memory: device
    /// memory, pinned memory, a stream, an event, a module, a graph to launch. 0 for none.
    pub fn fail(&self, number: u64) {
        (self.fail)(number);
    }

    /// How many allocations there were.
    #[must_use]
    pub fn allocations(&self) -> u64 {
        (self.allocations)()
    }

    /// What was done so far that a real GPU would not do.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        lines(self.violations)
    }

    /// What is not given back.
    #[must_use]
    pub fn live(&self) -> Vec<String> {
        lines(self.live)
    }
}

/// A function of the driver.
///
/// # Safety
/// It has the type `F`.
unsafe fn named<F: Copy>(library: &Library, name: &CStr) -> F {
    // SAFETY: the caller's word.
    *unsafe { library.get::<F>(name) }.unwrap_or_else(|error| panic!("{name:?}: {error}"))
}

/// What the driver tells.
fn lines(tell: unsafe extern "C" fn(*mut u8, usize) -> usize) -> Vec<String> {
    let mut text = vec![0; 1 << 16];
    // SAFETY: there is as much room.
    let length = unsafe { tell(text.as_mut_ptr(), text.len()) };
    text.truncate(length);
    String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
}

/// The shared library, which cargo puts beside the tests of crates that depend on this one.
fn library() -> PathBuf {
    let test = std::env::current_exe().expect("a test is a file");
    test.with_file_name("libimprompt_cuda_emulated.so")
}
