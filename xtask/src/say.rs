//! What a person reads. A terminal or a pipe that is gone ends nothing and changes no exit code.

/// Writes a line to a stream.
macro_rules! tell {
    ($stream:expr, $($text:tt)*) => {
        // Nobody is left to tell.
        _ = std::io::Write::write_fmt(
            &mut $stream,
            format_args!("{}\n", format_args!($($text)*)),
        )
    };
}

/// Writes a line to standard output.
macro_rules! say {
    ($($text:tt)*) => {
        tell!(std::io::stdout().lock(), $($text)*)
    };
}

/// Writes a line to standard error.
macro_rules! note {
    ($($text:tt)*) => {
        tell!(std::io::stderr().lock(), $($text)*)
    };
}
