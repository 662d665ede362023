//! The small application of the demo and the tests. It knows nothing of the
//! mesh: it listens, answers, and calls its neighbours by name.

mod backend;
mod client;
mod http;
mod pages;
mod tcp;

use std::net::SocketAddr;

use clap::{Args, Parser, Subcommand};

#[derive(Parser)]
#[command(name = "bookinfo", about = "A small application of several services")]
struct Arguments {
    #[command(subcommand)]
    service: Service,
}

#[derive(Subcommand)]
enum Service {
    /// Reviews of a book, in several versions.
    Reviews(Listen),
    /// Stars.
    Ratings(Listen),
    /// Author and pages.
    Details(Listen),
    /// The page that calls the other three by name.
    Productpage(Listen),
    /// Answers as it is asked to (`/status/503`, `/delay/1500`), and counts connections.
    Backend {
        #[command(flatten)]
        listen: Listen,
        /// Answer 500 to everything else.
        #[arg(long)]
        fail: bool,
        /// Answer so many milliseconds late
        #[arg(long, default_value_t = 0, value_name = "MS")]
        delay: u64,
    },
    /// Sends back every byte it gets (TCP).
    Echo(Listen),
    /// Speaks first, then echoes (TCP).
    Greeter(Listen),
}

#[derive(Args)]
struct Listen {
    /// Version to answer with.
    #[arg(long, default_value = "v1")]
    version: String,
    /// Addresses to listen on; repeatable. The default serves IPv6 and IPv4.
    #[arg(long, default_value = "[::]:9080")]
    listen: Vec<SocketAddr>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Arguments::parse().service {
        Service::Reviews(listen) => http::serve(listen, pages::reviews).await,
        Service::Ratings(listen) => http::serve(listen, pages::ratings).await,
        Service::Details(listen) => http::serve(listen, pages::details).await,
        Service::Productpage(listen) => http::serve(listen, pages::productpage).await,
        Service::Backend {
            listen,
            fail,
            delay,
        } => backend::serve(listen, backend::Manner { fail, delay }).await,
        Service::Echo(listen) => tcp::serve(listen, "").await,
        Service::Greeter(listen) => tcp::serve(listen, tcp::GREETING).await,
    }
}
