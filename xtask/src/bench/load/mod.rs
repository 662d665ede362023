//! The load that no packaged client makes: `xtask load ...`, started by the
//! benchmark inside a workload's namespace. Each prints one JSON object.

mod hold;
mod latency;
mod spin;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Subcommand;

/// How long a single answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Which load.
#[derive(Subcommand)]
pub enum Load {
    /// Requests at a fixed rate, whatever the answers take (open loop).
    Latency(latency::Arguments),
    /// Many connections, each with one request, held open until standard input ends.
    Hold(hold::Arguments),
    /// Nothing but computing until standard input ends, as other work on a node does.
    Spin,
}

/// Makes the load.
pub fn run(load: &Load) -> Result<()> {
    match load {
        Load::Latency(arguments) => latency::run(arguments),
        Load::Hold(arguments) => hold::run(arguments),
        Load::Spin => spin::run(),
    }
}

/// A connection that sends the same request again and again.
struct Client {
    stream: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Client {
    fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, ANSWER_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Self {
            stream,
            request: format!("GET / HTTP/1.1\r\nHost: {address}\r\n\r\n").into_bytes(),
            answer: Vec::new(),
        })
    }

    /// One request and its whole answer, which must be a 200 with a
    /// Content-Length; when the last of it was there.
    fn exchange(&mut self) -> io::Result<Instant> {
        self.stream.write_all(&self.request)?;
        self.answer.clear();
        let mut chunk = [0; 2048];
        loop {
            let count = self.stream.read(&mut chunk)?;
            let read = Instant::now();
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.answer.extend_from_slice(&chunk[..count]);
            if is_whole(&self.answer)? {
                return Ok(read);
            }
        }
    }
}

/// Whether this is all of an answer.
fn is_whole(answer: &[u8]) -> io::Result<bool> {
    let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
        return Ok(false);
    };
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    if !head.starts_with("http/1.1 200 ") {
        let line = head.lines().next().unwrap_or_default();
        return Err(io::Error::other(format!("the answer is {line:?}")));
    }
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .and_then(|value| value.trim().parse::<usize>().ok())
        .ok_or_else(|| io::Error::other("the answer has no Content-Length"))?;
    Ok(answer.len() >= end + 4 + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_body_is() {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n".to_vec();
        assert!(!is_whole(&head[..10]).unwrap());
        assert!(!is_whole(&head).unwrap());
        assert!(is_whole(&[&head[..], b"abc"].concat()).unwrap());
        assert!(is_whole(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").is_err());
    }
}
