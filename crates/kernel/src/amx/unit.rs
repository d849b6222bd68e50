//! The unit's instructions. The compiler has no stable names for them, so they are written
//! here, and nowhere else, as assembly.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};

use super::{Sums, TILE_BYTES, TILE_ROWS};

/// What computes a square of sums. [`Amx`] is the real one; the tests have one that any processor
/// runs, so that everything around it is tested on all of them.
///
/// A strip of rows is narrow where it has sixteen at most: its second tiles of rows are not read. A row's sums are the
/// same bits in narrow and in other strips.
pub(crate) trait Unit {
    /// Calls `work`, in which the other functions may be called.
    ///
    /// # Safety
    /// The unit is usable ([`super::is_usable`]).
    unsafe fn scope(work: impl FnOnce());

    /// `sums` of the products of `depth` pairs of tiles: weights `[depth][W][2]` tiles of sixteen
    /// outputs by 32 inputs, rows `[depth][X][2]` tiles of sixteen pairs of inputs by sixteen
    /// rows of two. `X` is three or two, `W` as many or less. Of the pieces of both sides, counted from 0, those
    /// products are taken whose numbers add up to less than `X`.
    ///
    /// # Safety
    /// Inside of [`Unit::scope`]; the tiles are there.
    unsafe fn floats<const W: usize, const X: usize>(
        weights: *const u16,
        rows: *const u16,
        depth: usize,
        sums: &mut Sums<f32>,
    );

    /// [`Unit::floats`] of a narrow strip, for two squares of weights at once: one by itself would wait for its own
    /// sums. Those of the second half of the rows are left as they are.
    ///
    /// # Safety
    /// As [`Unit::floats`].
    unsafe fn narrow_floats<const W: usize, const X: usize>(
        weights: [*const u16; 2],
        rows: *const u16,
        depth: usize,
        sums: &mut [Sums<f32>; 2],
    );

    /// `sums` of the products of `depth` pairs of tiles of bytes: weights `[depth][2]` of sixteen outputs by 64
    /// inputs, rows `[depth][2]` of sixteen fours of inputs by sixteen rows of four. Of a narrow strip the
    /// sums of the second half are left as they are.
    ///
    /// # Safety
    /// As [`Unit::floats`].
    unsafe fn bytes(
        weights: *const i8,
        rows: *const i8,
        depth: usize,
        sums: &mut Sums<i32>,
        narrow: bool,
    );
}

/// AMX.
pub(crate) struct Amx;

/// How the tile registers are parted, as `ldtilecfg` takes it.
#[repr(C, align(64))]
struct Shape {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Eight registers of sixteen rows of 64 bytes.
static SHAPE: Shape = {
    let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
    let mut register = 0;
    while register < 8 {
        row_bytes[register] = 64;
        rows[register] = TILE_ROWS as u8;
        register += 1;
    }
    Shape { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
};

/// The names of Linux: arch/x86/include/uapi/asm/prctl.h, `XFEATURE_XTILE_DATA`.
const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
const XTILE_DATA: libc::c_ulong = 18;

/// Whether the processor has bfloat16 and byte tiles and the system lets this process use them.
pub(super) fn is_there() -> bool {
    // Leaf 7, edx: bit 22 AMX-BF16, 24 AMX-TILE, 25 AMX-INT8.
    const WANTED: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    if __cpuid(0).eax < 7 || __cpuid_count(7, 0).edx & WANTED != WANTED {
        return false;
    }
    // The registers are 8 KiB a thread, so Linux (since 5.16) has each process ask for them; an older one does not know the call.
    // SAFETY: it changes what this process may do and nothing else.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILE_DATA) == 0 }
}

/// Gives the registers back, also when the work panics.
struct Release;

impl Drop for Release {
    fn drop(&mut self) {
        // SAFETY: inside of `scope`.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// The left operand: both halves of a piece of the weights at `w`, or of a second square's at `v`, into
/// the registers 4 and 5.
macro_rules! left {
    ($base:literal, $first:literal, $second:literal) => {
        concat!(
            "tileloadd tmm4, [{",
            $base,
            "} + {line} + ",
            $first,
            "]\n tileloadd tmm5, [{",
            $base,
            "} + {line} + ",
            $second,
            "]\n"
        )
    };
    (0) => {
        left!("w", "0", "1024")
    };
    (1) => {
        left!("w", "2048", "3072")
    };
    (2) => {
        left!("w", "4096", "5120")
    };
    (0 second) => {
        left!("v", "0", "1024")
    };
    (1 second) => {
        left!("v", "2048", "3072")
    };
    (2 second) => {
        left!("v", "4096", "5120")
    };
}

/// The right operand: both halves of a piece of the rows into the registers 6 and 7, or
/// of a `narrow` strip the first alone.
macro_rules! right {
    ($first:literal, $second:literal) => {
        concat!(
            "tileloadd tmm6, [{x} + {line} + ",
            $first,
            "]\n tileloadd tmm7, [{x} + {line} + ",
            $second,
            "]\n"
        )
    };
    (0) => {
        right!("0", "1024")
    };
    (1) => {
        right!("2048", "3072")
    };
    (2) => {
        right!("4096", "5120")
    };
    (0 narrow) => {
        "tileloadd tmm6, [{x} + {line}]\n"
    };
    (1 narrow) => {
        "tileloadd tmm6, [{x} + {line} + 2048]\n"
    };
    (2 narrow) => {
        "tileloadd tmm6, [{x} + {line} + 4096]\n"
    };
}

/// What is in the registers 4 to 7, onto the sums in 0 to 3; of a `narrow` strip onto those in 0 and 2.
macro_rules! add {
    ($dot:literal) => {
        concat!(add!($dot narrow), $dot, " tmm1, tmm4, tmm7\n", $dot, " tmm3, tmm5, tmm7\n")
    };
    ($dot:literal narrow) => {
        concat!($dot, " tmm0, tmm4, tmm6\n", $dot, " tmm2, tmm5, tmm6\n")
    };
}

/// A piece of the weights of two squares times what is in the register 6, onto their sums in 0 and 2, 1 and 3.
macro_rules! twice {
    ($piece:tt) => {
        concat!(
            left!($piece),
            add!("tdpbf16ps" narrow),
            left!($piece second),
            "tdpbf16ps tmm1, tmm4, tmm6\n tdpbf16ps tmm3, tmm5, tmm6\n"
        )
    };
}

/// The sums, to memory; or of a narrow strip those of the first half of the rows.
macro_rules! store {
    () => {
        concat!(
            store!(narrow),
            "\ntilestored [{sums} + {line} + 1024], tmm1\n",
            "tilestored [{sums} + {line} + 3072], tmm3"
        )
    };
    (narrow) => {
        concat!("tilestored [{sums} + {line}], tmm0\n", "tilestored [{sums} + {line} + 2048], tmm2")
    };
    // The second square's sums lie behind the first's.
    (twice) => {
        concat!(
            store!(narrow),
            "\ntilestored [{sums} + {line} + 4096], tmm1\n",
            "tilestored [{sums} + {line} + 6144], tmm3"
        )
    };
}

/// What a square is made of.
struct Square<W, S> {
    weights: *const W,
    rows: *const W,
    depth: usize,
    sums: *mut S,
}

/// Runs `steps` for each of the pairs of tiles, the weights' and the rows' so many bytes apart, and stores the sums.
/// A second square's weights are at `second`.
macro_rules! square {
    ($square:expr, $w_bytes:expr, $x_bytes:expr, [$($step:expr),+ $(,)?]) => {
        square!($square, $w_bytes, $x_bytes, [$($step),+], store!())
    };
    ($square:expr, $w_bytes:expr, $x_bytes:expr, [$($step:expr),+ $(,)?], $store:expr $(, $second:expr)?) => {{
        let Square { weights, rows, depth, sums } = $square;
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            concat!($($step),+),
            "add {w}, {w_bytes}",
            $(square!(@ $second, "add {v}, {w_bytes}"),)?
            "add {x}, {x_bytes}",
            "dec {depth}",
            "jnz 2b",
            $store,
            w = inout(reg) weights => _,
            x = inout(reg) rows => _,
            $(v = inout(reg) $second => _,)?
            depth = inout(reg) depth => _,
            sums = in(reg) sums,
            line = in(reg) 64usize,
            w_bytes = const $w_bytes,
            x_bytes = const $x_bytes,
            options(nostack),
        )
    }};
    (@ $second:expr, $text:literal) => {
        $text
    };
}

/// Bytes of two tiles: both halves of a piece.
const PAIR: usize = 2 * TILE_BYTES;

impl Unit for Amx {
    unsafe fn scope(work: impl FnOnce()) {
        // SAFETY: the caller asked whether the unit may be used; the shape is 64 bytes.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const SHAPE, options(nostack, readonly, preserves_flags));
        }
        let _release = Release;
        work();
    }

    unsafe fn floats<const W: usize, const X: usize>(
        weights: *const u16,
        rows: *const u16,
        depth: usize,
        sums: &mut Sums<f32>,
    ) {
        assert!(depth > 0);
        let square = Square { weights, rows, depth, sums: sums.0.as_mut_ptr() };
        // The small products first, and an operand stays while the other changes.
        // SAFETY: what the caller promises; the registers are nobody else's inside of `scope`.
        unsafe {
            match (W, X) {
                (1, 3) => square!(
                    square,
                    PAIR,
                    3 * PAIR,
                    [
                        left!(0),
                        right!(2),
                        add!("tdpbf16ps"),
                        right!(1),
                        add!("tdpbf16ps"),
                        right!(0),
                        add!("tdpbf16ps"),
                    ]
                ),
                (2, 3) => square!(
                    square,
                    2 * PAIR,
                    3 * PAIR,
                    [
                        left!(1),
                        right!(1),
                        add!("tdpbf16ps"),
                        right!(0),
                        add!("tdpbf16ps"),
                        left!(0),
                        right!(2),
                        add!("tdpbf16ps"),
                        right!(1),
                        add!("tdpbf16ps"),
                        right!(0),
                        add!("tdpbf16ps"),
                    ]
                ),
                (1, 2) => square!(
                    square,
                    PAIR,
                    2 * PAIR,
                    [left!(0), right!(1), add!("tdpbf16ps"), right!(0), add!("tdpbf16ps")]
                ),
                (2, 2) => square!(
                    square,
                    2 * PAIR,
                    2 * PAIR,
                    [
                        left!(1),
                        right!(0),
                        add!("tdpbf16ps"),
                        left!(0),
                        add!("tdpbf16ps"),
                        right!(1),
                        add!("tdpbf16ps"),
                    ]
                ),
                _ => square!(
                    square,
                    3 * PAIR,
                    3 * PAIR,
                    [
                        left!(2),
                        right!(0),
                        add!("tdpbf16ps"),
                        left!(1),
                        add!("tdpbf16ps"),
                        right!(1),
                        add!("tdpbf16ps"),
                        left!(0),
                        add!("tdpbf16ps"),
                        right!(2),
                        add!("tdpbf16ps"),
                        right!(0),
                        add!("tdpbf16ps"),
                    ]
                ),
            }
        }
    }

    unsafe fn narrow_floats<const W: usize, const X: usize>(
        [weights, second]: [*const u16; 2],
        rows: *const u16,
        depth: usize,
        sums: &mut [Sums<f32>; 2],
    ) {
        assert!(depth > 0);
        let square = Square { weights, rows, depth, sums: sums.as_mut_ptr() };
        // The products in the order of `floats`.
        // SAFETY: as in `floats`.
        unsafe {
            match (W, X) {
                (1, 3) => square!(
                    square,
                    PAIR,
                    3 * PAIR,
                    [
                        right!(2 narrow),
                        twice!(0),
                        right!(1 narrow),
                        twice!(0),
                        right!(0 narrow),
                        twice!(0),
                    ],
                    store!(twice),
                    second
                ),
                (2, 3) => square!(
                    square,
                    2 * PAIR,
                    3 * PAIR,
                    [
                        right!(1 narrow),
                        twice!(1),
                        right!(0 narrow),
                        twice!(1),
                        right!(2 narrow),
                        twice!(0),
                        right!(1 narrow),
                        twice!(0),
                        right!(0 narrow),
                        twice!(0),
                    ],
                    store!(twice),
                    second
                ),
                (1, 2) => square!(
                    square,
                    PAIR,
                    2 * PAIR,
                    [right!(1 narrow), twice!(0), right!(0 narrow), twice!(0)],
                    store!(twice),
                    second
                ),
                (2, 2) => square!(
                    square,
                    2 * PAIR,
                    2 * PAIR,
                    [right!(0 narrow), twice!(1), twice!(0), right!(1 narrow), twice!(0),],
                    store!(twice),
                    second
                ),
                _ => square!(
                    square,
                    3 * PAIR,
                    3 * PAIR,
                    [
                        right!(0 narrow),
                        twice!(2),
                        twice!(1),
                        right!(1 narrow),
                        twice!(1),
                        twice!(0),
                        right!(2 narrow),
                        twice!(0),
                        right!(0 narrow),
                        twice!(0),
                    ],
                    store!(twice),
                    second
                ),
            }
        }
    }

    unsafe fn bytes(
        weights: *const i8,
        rows: *const i8,
        depth: usize,
        sums: &mut Sums<i32>,
        narrow: bool,
    ) {
        assert!(depth > 0);
        let square = Square { weights, rows, depth, sums: sums.0.as_mut_ptr() };
        // SAFETY: as in `floats`.
        unsafe {
            match narrow {
                false => square!(square, PAIR, PAIR, [left!(0), right!(0), add!("tdpbssd")]),
                true => square!(
                    square,
                    PAIR,
                    PAIR,
                    [left!(0), right!(0 narrow), add!("tdpbssd" narrow)],
                    store!(narrow)
                ),
            }
        }
    }
}
