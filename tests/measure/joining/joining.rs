//! Joins and claims as many times as its argument says, and prints the microseconds of each.

use std::error::Error;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let rounds: u32 = std::env::args().nth(1).ok_or("how many times?")?.parse()?;
    for _ in 0..rounds {
        let service = "joining".parse()?;
        let from = Instant::now();
        let mut generation = bindonce::Generation::join(&service)?;
        let lease = generation.claim_one("web=127.0.0.1:0")?;
        let took = from.elapsed();
        drop((lease, generation));
        println!("{:.1}", took.as_secs_f64() * 1e6);
    }
    Ok(())
}
