//! System calls (Linux, arm64: `include/uapi/asm-generic/unistd.h`).

use core::arch::asm;
use core::ffi::CStr;
use core::fmt;

const FTRUNCATE: usize = 46;
const OPENAT: usize = 56;
const CLOSE: usize = 57;
const WRITE: usize = 64;
const PREAD64: usize = 67;
const PWRITE64: usize = 68;
const EXIT_GROUP: usize = 94;
const NANOSLEEP: usize = 101;
pub(super) const MUNMAP: usize = 215;
pub(super) const MMAP: usize = 222;
const MEMFD_CREATE: usize = 279;

/// `openat`: relative to the working directory, which no path here is.
const AT_FDCWD: usize = -100_isize as usize;
const O_RDWR: usize = 2;
const O_SYNC: usize = 0o4_010_000;
const STANDARD_OUTPUT: usize = 1;
const ERRORS: core::ops::RangeInclusive<isize> = -4095..=-1;

/// A number of `errno.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "errno {}", self.0)
    }
}

/// Makes a system call.
///
/// # Safety
///
/// Memory that the arguments name is valid for what the call does with it.
pub(super) unsafe fn call(number: usize, arguments: [usize; 6]) -> Result<usize, Errno> {
    let result: isize;
    // SAFETY: the kernel changes x0 and, by the caller's promise, only memory that the arguments name.
    unsafe {
        asm!(
            "svc #0",
            in("x8") number,
            inlateout("x0") arguments[0] => result,
            in("x1") arguments[1],
            in("x2") arguments[2],
            in("x3") arguments[3],
            in("x4") arguments[4],
            in("x5") arguments[5],
            options(nostack)
        );
    }
    if ERRORS.contains(&result) { Err(Errno(-result as i32)) } else { Ok(result as usize) }
}

/// An open file.
#[derive(Debug)]
pub struct File(pub(super) usize);

impl File {
    /// Opens a file for reading and writing; what is mapped of it is not cached.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn open(path: &CStr) -> Result<Self, Errno> {
        // SAFETY: the path is a string that ends with zero.
        unsafe { call(OPENAT, [AT_FDCWD, path.as_ptr() as usize, O_RDWR | O_SYNC, 0, 0, 0]) }
            .map(Self)
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn open_to_read(path: &CStr) -> Result<Self, Errno> {
        // SAFETY: the path is a string that ends with zero.
        unsafe { call(OPENAT, [AT_FDCWD, path.as_ptr() as usize, 0, 0, 0, 0]) }.map(Self)
    }

    /// Makes a file of `size` zeros in memory.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn in_memory(name: &CStr, size: usize) -> Result<Self, Errno> {
        // SAFETY: the name is a string that ends with zero.
        let file = Self(unsafe { call(MEMFD_CREATE, [name.as_ptr() as usize, 0, 0, 0, 0, 0]) }?);
        // SAFETY: nothing is mapped of the new file.
        unsafe { call(FTRUNCATE, [file.0, size, 0, 0, 0, 0]) }?;
        Ok(file)
    }

    /// Reads from `offset` on, and returns how many bytes there were.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn read(&self, bytes: &mut [u8], offset: u64) -> Result<usize, Errno> {
        let (at, size) = (bytes.as_mut_ptr() as usize, bytes.len());
        // SAFETY: the kernel writes to the slice only.
        unsafe { call(PREAD64, [self.0, at, size, offset as usize, 0, 0]) }
    }

    /// Writes at `offset`, and returns how many bytes were taken.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn write(&self, bytes: &[u8], offset: u64) -> Result<usize, Errno> {
        let (at, size) = (bytes.as_ptr() as usize, bytes.len());
        // SAFETY: the kernel only reads the slice; no file here holds a Rust object.
        unsafe { call(PWRITE64, [self.0, at, size, offset as usize, 0, 0]) }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: mappings outlive their file. Nothing can be done if this fails.
        let _ = unsafe { call(CLOSE, [self.0, 0, 0, 0, 0, 0]) };
    }
}

/// Writes to the standard output, at once if the kernel takes it all.
pub fn print(mut text: &[u8]) {
    while !text.is_empty() {
        let (at, size) = (text.as_ptr() as usize, text.len());
        // SAFETY: the kernel only reads the text.
        let written = unsafe { call(WRITE, [STANDARD_OUTPUT, at, size, 0, 0, 0]) };
        // Nobody is left to be told that nobody listens.
        let Ok(rest) = written.map(|written| &text[written..]) else { return };
        text = rest;
    }
}

/// Lets others run for some time.
pub fn sleep_ms(milliseconds: u64) {
    let time = [milliseconds / 1000, milliseconds % 1000 * 1_000_000];
    // SAFETY: the kernel only reads the time; it writes nothing where there is no second pointer.
    let _ = unsafe { call(NANOSLEEP, [time.as_ptr() as usize, 0, 0, 0, 0, 0]) };
}

/// Ends the program.
pub fn exit(status: u8) -> ! {
    loop {
        // SAFETY: nothing comes after this.
        let _ = unsafe { call(EXIT_GROUP, [status.into(), 0, 0, 0, 0, 0]) };
    }
}
