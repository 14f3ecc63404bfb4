//! What a proxy has behind it: answers each request with a number of its own, on a thread for each connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// A backend that ends when it is dropped.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    pub(crate) fn start(number: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("an address");
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        let thread = thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                thread::spawn(move || answer(stream, number));
            }
        });
        Self { address, over, thread: Some(thread) }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the backend ended well");
        }
    }
}

fn answer(mut stream: TcpStream, number: usize) {
    let (mut head, mut more) = (Vec::new(), [0; 4096]);
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut more) {
            Ok(got) if got > 0 => head.extend_from_slice(&more[..got]),
            _ => return,
        }
    }
    let body = format!("generation {number}, behind a proxy\n");
    let length = body.len();
    let text = format!(
        "HTTP/1.1 200 OK\r\nX-Generation: {number}\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    );
    // Whoever has left hears nothing.
    let _ = stream.write_all(text.as_bytes());
}
