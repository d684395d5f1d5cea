// SPDX-License-Identifier: MIT OR Apache-2.0

//! Capture files: reads pcap and pcapng, writes pcap.

use std::io::{self, Read, Write};

use anyhow::{Context, Result};
use jiff::Timestamp;
use pcap_parser::traits::{PcapNGPacketBlock, PcapReaderIterator};
use pcap_parser::{Block, PcapBlockOwned, PcapError, create_reader};

use crate::error::usage;
use crate::net::linktype::LinkType;

/// A packet of a capture file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Captured {
    /// From 1, over all packets of the file.
    pub(crate) number: u64,
    pub(crate) time: Option<Timestamp>,
    pub(crate) link: LinkType,
    /// The byte order that the file was written in, or this part of it.
    pub(crate) big_endian: bool,
    pub(crate) data: Vec<u8>,
    /// How long it was on the wire.
    pub(crate) length: u32,
}

/// Reads packets one after the other. What isn't a whole capture file is wrong usage.
pub(crate) struct Savefile<'a> {
    name: String,
    reader: Box<dyn PcapReaderIterator + Send + 'a>,
    capacity: usize,
    interfaces: Vec<Interface>,
    big_endian: bool,
    nanoseconds: bool,
    lengths: Lengths,
    packets: u64,
}

/// In which order a pcap file has a packet's two lengths: in the file, and on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lengths {
    InOrder,
    Swapped,
    /// Some programs swapped them, some not: the shorter is the one in the file.
    Either,
}

/// pcapng's type of the obsolete Packet Block, which the library doesn't know.
const PACKET_BLOCK: u32 = 2;

/// What pcapng says of an interface; pcap has one.
#[derive(Clone, Copy, Debug)]
struct Interface {
    link: LinkType,
    /// How many bytes of a packet it has at most. 0 is any number, and so is what has no 31 bits.
    snaplen: u32,
    units_per_second: u128,
    offset_seconds: i64,
}

impl<'a> Savefile<'a> {
    /// `name` is what messages call it.
    pub(crate) fn new(name: &str, reader: impl Read + Send + 'a) -> Result<Self> {
        const CAPACITY: usize = 1 << 17;
        let reader = match create_reader(CAPACITY, Whole(reader)) {
            Ok(reader) => reader,
            Err(PcapError::ReadError) => anyhow::bail!("cannot read {name}"),
            Err(PcapError::Eof) => return Err(usage(format!("{name}: the file is empty"))),
            Err(_) => {
                return Err(usage(format!("{name}: not a capture file; expected pcap or pcapng")));
            }
        };
        Ok(Self {
            name: name.into(),
            reader,
            capacity: CAPACITY,
            interfaces: Vec::new(),
            big_endian: false,
            nanoseconds: false,
            lengths: Lengths::InOrder,
            packets: 0,
        })
    }

    /// The next packet, or nothing at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Captured>> {
        loop {
            match self.step()? {
                Step::Packet(packet) => return Ok(Some(packet)),
                Step::Other => {}
                Step::End => return Ok(None),
            }
        }
    }

    fn step(&mut self) -> Result<Step> {
        /// No packet is longer; what says so is damaged.
        const LARGEST: usize = 1 << 24;
        let (offset, step) = match self.reader.next() {
            Ok((offset, block)) => {
                let mut file = Place {
                    name: &self.name,
                    interfaces: &mut self.interfaces,
                    big_endian: &mut self.big_endian,
                    nanoseconds: &mut self.nanoseconds,
                    lengths: &mut self.lengths,
                    packets: &mut self.packets,
                };
                (offset, file.block(&block)?)
            }
            Err(PcapError::Eof) => return Ok(Step::End),
            Err(PcapError::Incomplete(_)) => {
                if self.reader.refill().is_err() {
                    anyhow::bail!("cannot read {}", self.name);
                }
                return Ok(Step::Other);
            }
            Err(PcapError::BufferTooSmall) if self.capacity < LARGEST => {
                // Only when it is full: the end of the file may come first.
                if self.reader.data().len() == self.capacity {
                    self.capacity *= 2;
                    self.reader.grow(self.capacity);
                }
                if self.reader.refill().is_err() {
                    anyhow::bail!("cannot read {}", self.name);
                }
                return Ok(Step::Other);
            }
            Err(PcapError::ReadError) => anyhow::bail!("cannot read {}", self.name),
            Err(PcapError::UnexpectedEof) => {
                let message = format!("{}: cut short after packet {}", self.name, self.packets);
                return Err(usage(message));
            }
            Err(_) => {
                let message = format!("{}: damaged after packet {}", self.name, self.packets);
                return Err(usage(message));
            }
        };
        self.reader.consume(offset);
        Ok(step)
    }
}

enum Step {
    Packet(Captured),
    Other,
    End,
}

/// Where in the file we are: what blocks before said, without the reader, which a block borrows.
struct Place<'f> {
    name: &'f str,
    interfaces: &'f mut Vec<Interface>,
    big_endian: &'f mut bool,
    nanoseconds: &'f mut bool,
    lengths: &'f mut Lengths,
    packets: &'f mut u64,
}

impl Place<'_> {
    fn block(&mut self, block: &PcapBlockOwned<'_>) -> Result<Step> {
        match block {
            PcapBlockOwned::LegacyHeader(header) => {
                let version = (header.version_major, header.version_minor);
                if !matches!(version, (2, 0..=4) | (543, 0)) {
                    return Err(self.unknown_version("pcap", version, "2.4"));
                }
                *self.lengths = match version {
                    (2, 4) => Lengths::InOrder,
                    (2, 3) => Lengths::Either,
                    _ => Lengths::Swapped,
                };
                // libpcap's LT_RESERVED1: nobody has said what these bits are.
                if header.network.0 & 0x03ff_0000 != 0 {
                    let link = header.network.0;
                    return Err(usage(format!(
                        "{}: there is no link type {link:#010x}",
                        self.name
                    )));
                }
                *self.nanoseconds = header.is_nanosecond_precision();
                *self.big_endian = header.is_bigendian();
                let units_per_second = if *self.nanoseconds { 1_000_000_000 } else { 1_000_000 };
                // The upper bits say how long the checksum at the end of each packet is.
                let link = LinkType(header.network.0 as u16);
                self.interfaces.push(Interface {
                    link,
                    snaplen: header.snaplen,
                    units_per_second,
                    offset_seconds: 0,
                });
            }
            PcapBlockOwned::Legacy(packet) => {
                let units = if *self.nanoseconds { 1_000_000_000 } else { 1_000_000 };
                let ticks = u128::from(packet.ts_sec) * units + u128::from(packet.ts_usec);
                // The library takes the first for the length in the file.
                let wrong = match *self.lengths {
                    Lengths::InOrder => false,
                    Lengths::Either => packet.caplen > packet.origlen,
                    Lengths::Swapped => packet.caplen != packet.origlen,
                };
                if wrong {
                    return Err(usage(format!(
                        "{}: packet {} is cut short, which can't be read of a file as old as this; expected version 2.4",
                        self.name,
                        *self.packets + 1
                    )));
                }
                return self.packet(0, Some(ticks), packet.data, packet.origlen);
            }
            PcapBlockOwned::NG(Block::SectionHeader(section)) => {
                let version = (section.major_version, section.minor_version);
                // What libpcap and Wireshark take: one program wrote 1.2, and meant 1.0.
                if !matches!(version, (1, 0 | 2)) {
                    return Err(self.unknown_version("pcapng", version, "1.0"));
                }
                *self.big_endian = section.big_endian();
                self.interfaces.clear();
            }
            PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
                let (binary, power) =
                    (interface.if_tsresol & 0x80 != 0, u32::from(interface.if_tsresol & 0x7f));
                let units =
                    if binary { 1_u128.checked_shl(power) } else { 10_u128.checked_pow(power) };
                // The library reads the offset as little-endian always.
                let offset = interface.if_tsoffset;
                self.interfaces.push(Interface {
                    link: LinkType(interface.linktype.0 as u16),
                    snaplen: interface.snaplen,
                    units_per_second: units.filter(|&units| units > 0).unwrap_or(1_000_000),
                    offset_seconds: if *self.big_endian { offset.swap_bytes() } else { offset },
                });
            }
            PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
                let ticks = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
                let index = packet.if_id as usize;
                return self.packet(
                    index,
                    Some(ticks.into()),
                    packet.packet_data(),
                    packet.origlen,
                );
            }
            PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
                // It doesn't say how many bytes it has of a longer packet: as many as the interface takes, and padding.
                return self.packet(0, None, packet.packet_data(), packet.origlen);
            }
            PcapBlockOwned::NG(Block::Unknown(block)) => {
                // The library reads the type as little-endian always.
                let kind =
                    if *self.big_endian { block.block_type.swap_bytes() } else { block.block_type };
                if kind == PACKET_BLOCK {
                    return self.obsolete(block.data);
                }
            }
            // Statistics, names, secrets: no packets.
            PcapBlockOwned::NG(_) => {}
        }
        Ok(Step::Other)
    }

    fn unknown_version(
        &self,
        format: &str,
        (major, minor): (u16, u16),
        known: &str,
    ) -> anyhow::Error {
        usage(format!("{}: version {major}.{minor} of {format}; expected {known}", self.name))
    }

    /// The Packet Block, which the Enhanced Packet Block took the place of: Wireshark wrote it until 2009, and others
    /// later.
    fn obsolete(&mut self, body: &[u8]) -> Result<Step> {
        const HEADER: usize = 20;
        let big_endian = *self.big_endian;
        let word = |at: usize| {
            let bytes = body.get(at..at + 4)?.try_into().ok()?;
            Some(if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
        };
        let fields = || {
            // The interface has 16 bits, and as many follow for how many packets were lost.
            let interface = if big_endian { word(0)? >> 16 } else { word(0)? & 0xffff };
            let ticks = u64::from(word(4)?) << 32 | u64::from(word(8)?);
            let data = body.get(HEADER..)?.get(..word(12)? as usize)?;
            Some((interface as usize, ticks, data, word(16)?))
        };
        let Some((interface, ticks, data, length)) = fields() else {
            return Err(usage(format!("{}: damaged after packet {}", self.name, self.packets)));
        };
        self.packet(interface, Some(ticks.into()), data, length)
    }

    fn packet(
        &mut self,
        interface: usize,
        ticks: Option<u128>,
        data: &[u8],
        length: u32,
    ) -> Result<Step> {
        *self.packets += 1;
        let number = *self.packets;
        let Some(interface) = self.interfaces.get(interface) else {
            let message = format!("{}: packet {number} is of no interface of the file", self.name);
            return Err(usage(message));
        };
        let time = ticks.and_then(|ticks| interface.time(ticks));
        let (link, big_endian) = (interface.link, *self.big_endian);
        // More than the file says that a packet has at most is cut off, as libpcap does.
        let data = data[..data.len().min(interface.most())].to_vec();
        Ok(Step::Packet(Captured { number, time, link, big_endian, data, length }))
    }
}

impl Interface {
    /// The most bytes of a packet.
    fn most(&self) -> usize {
        match i32::try_from(self.snaplen) {
            Ok(0) | Err(_) => usize::MAX,
            Ok(most) => most as usize,
        }
    }

    /// Nothing for a time that no calendar has.
    fn time(&self, ticks: u128) -> Option<Timestamp> {
        let seconds = ticks / self.units_per_second;
        // A resolution of 10^38 leaves no room for a product; its low digits are no loss.
        let rest = ticks % self.units_per_second;
        let nanos = match rest.checked_mul(1_000_000_000) {
            Some(product) => product / self.units_per_second,
            None => rest / (self.units_per_second / 1_000_000_000),
        };
        let seconds = i64::try_from(seconds).ok()?.checked_add(self.offset_seconds)?;
        Timestamp::new(seconds, nanos as i32).ok()
    }
}

/// Gives as much as is asked for, until the end: a pipe gives less.
struct Whole<R>(R);

impl<R: Read> Read for Whole<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.0.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

/// Writes a pcap file, of microseconds: every program reads that.
#[derive(Debug)]
pub(crate) struct Writer<W> {
    out: W,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(mut out: W, link: LinkType, snaplen: u32) -> Result<Self> {
        let mut header = Vec::with_capacity(24);
        header.extend(0xa1b2_c3d4_u32.to_ne_bytes());
        header.extend(2_u16.to_ne_bytes());
        header.extend(4_u16.to_ne_bytes());
        header.extend([0; 8]);
        header.extend(snaplen.to_ne_bytes());
        header.extend(u32::from(link.0).to_ne_bytes());
        out.write_all(&header).context("cannot write the capture file")?;
        Ok(Self { out })
    }

    pub(crate) fn write(&mut self, time: Timestamp, data: &[u8], length: u32) -> Result<()> {
        let mut record = Vec::with_capacity(16 + data.len());
        // The format has 32 bits for the seconds.
        record.extend((time.as_second() as u32).to_ne_bytes());
        record.extend((time.subsec_nanosecond() as u32 / 1000).to_ne_bytes());
        record.extend((data.len() as u32).to_ne_bytes());
        record.extend(length.to_ne_bytes());
        record.extend(data);
        self.out.write_all(&record).context("cannot write the capture file")
    }

    pub(crate) fn flush(&mut self) -> Result<()> {
        self.out.flush().context("cannot write the capture file")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Result<Vec<Captured>> {
        let mut file = Savefile::new("x", bytes)?;
        let mut packets = Vec::new();
        while let Some(packet) = file.next()? {
            packets.push(packet);
        }
        Ok(packets)
    }

    fn written(packets: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes, LinkType::ETHERNET, 262_144).unwrap();
        let time = Timestamp::new(1_700_000_000, 123_456_000).unwrap();
        for data in packets {
            writer.write(time, data, 1500).unwrap();
        }
        bytes
    }

    fn block(kind: u32, body: &[u8], big: bool) -> Vec<u8> {
        let number = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
        let mut body = body.to_vec();
        body.resize(body.len().next_multiple_of(4), 0);
        let length = number(body.len() as u32 + 12);
        [&number(kind)[..], &length, &body, &length].concat()
    }

    fn pcapng(big: bool) -> Vec<u8> {
        let short = |value: u16| if big { value.to_be_bytes() } else { value.to_le_bytes() };
        let number = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
        let long = |value: u64| if big { value.to_be_bytes() } else { value.to_le_bytes() };
        let section = [&number(0x1a2b_3c4d)[..], &short(1), &short(0), &[0xff; 8]].concat();
        // Nanoseconds, and ten seconds on.
        let options = [
            &short(9)[..],
            &short(1),
            &[9, 0, 0, 0],
            &short(14),
            &short(8),
            &long(10),
            &short(0),
            &short(0),
        ]
        .concat();
        let interface = [&short(101)[..], &short(0), &number(0), &options].concat();
        let ticks: u64 = 1_700_000_000_123_456_789;
        let packet = [
            &number(0)[..],
            &number((ticks >> 32) as u32),
            &number(ticks as u32),
            &number(3),
            &number(60),
            &[1, 2, 3],
        ]
        .concat();
        let simple = [&number(2)[..], &[8, 9]].concat();
        // Interface 0, seven packets lost before it.
        let obsolete = [
            &short(0)[..],
            &short(7),
            &number((ticks >> 32) as u32),
            &number(ticks as u32),
            &number(5),
            &number(70),
            &[1, 2, 3, 4, 5],
        ]
        .concat();
        [
            block(0x0a0d_0d0a, &section, big),
            block(1, &interface, big),
            block(6, &packet, big),
            block(5, &[0; 12], big),
            block(3, &simple, big),
            block(2, &obsolete, big),
        ]
        .concat()
    }

    #[test]
    fn what_was_written_is_read() {
        let packets = all(&written(&[b"abc", &[7; 3000]])).unwrap();
        assert_eq!(packets.len(), 2);
        assert_eq!((packets[1].number, packets[1].data.len(), packets[1].length), (2, 3000, 1500));
        assert_eq!(packets[0].time.unwrap().to_string(), "2023-11-14T22:13:20.123456Z");
        assert_eq!(packets[0].link, LinkType::ETHERNET);
    }

    #[test]
    fn pcapng_of_both_byte_orders() {
        for big in [false, true] {
            let packets = all(&pcapng(big)).unwrap();
            assert_eq!(packets.len(), 3, "big {big}");
            assert_eq!((&packets[0].data[..], packets[0].length), (&[1, 2, 3][..], 60));
            assert_eq!(packets[0].time.unwrap().to_string(), "2023-11-14T22:13:30.123456789Z");
            assert_eq!(packets[0].link, LinkType::RAW);
            assert_eq!((&packets[1].data[..], packets[1].time), (&[8, 9][..], None));
            assert_eq!((packets[2].number, packets[2].time), (3, packets[0].time));
            assert_eq!((&packets[2].data[..], packets[2].length), (&[1, 2, 3, 4, 5][..], 70));
        }
    }

    #[test]
    fn no_packet_is_longer_than_the_file_says() {
        let mut file = written(&[&[7; 300]]);
        file[16..20].copy_from_slice(&26_u32.to_ne_bytes());
        let packets = all(&file).unwrap();
        assert_eq!((packets[0].data.len(), packets[0].length), (26, 1500));
    }

    #[test]
    fn a_simple_packet_ends_where_the_interface_cuts_it() {
        let section = [&0x1a2b_3c4d_u32.to_le_bytes()[..], &[1, 0, 0, 0], &[0xff; 8]].concat();
        let interface = [1, 0, 0, 0, 6, 0, 0, 0];
        let simple = [&60_u32.to_le_bytes()[..], &[1, 2, 3, 4, 5, 6, 0, 0]].concat();
        let file = [
            block(0x0a0d_0d0a, &section, false),
            block(1, &interface, false),
            block(3, &simple, false),
        ]
        .concat();
        let packets = all(&file).unwrap();
        assert_eq!((&packets[0].data[..], packets[0].length), (&[1, 2, 3, 4, 5, 6][..], 60));
    }

    #[test]
    fn what_is_no_capture_file_is_told() {
        let file = written(&[b"abcdef"]);
        let mut large = file.clone();
        large[24 + 8..24 + 12].copy_from_slice(&u32::MAX.to_ne_bytes());
        let with = |at: usize, bytes: &[u8]| {
            let mut file = file.clone();
            file[at..at + bytes.len()].copy_from_slice(bytes);
            file
        };
        let mut section = pcapng(false);
        section[14] = 1;
        // The last block says that it has more bytes of its packet than fit.
        let mut long = pcapng(false);
        let at = long.len() - 4 - 8 - 8;
        long[at..at + 4].copy_from_slice(&9_u32.to_le_bytes());
        for (bytes, part) in [
            (&b""[..], "empty"),
            (b"hello, this is no capture", "not a capture file"),
            (&file[..20], "not a capture file"),
            (&file[..30], "cut short after packet 0"),
            (&file[..file.len() - 1], "cut short after packet 0"),
            (&large, "after packet 0"),
            (&with(4, &[3, 0, 0, 0]), "version 3.0 of pcap; expected 2.4"),
            (&with(6, &[5, 0]), "version 2.5 of pcap"),
            (&with(6, &[2, 0]), "packet 1 is cut short"),
            (&with(22, &[0x10, 0]), "no link type 0x00100001"),
            (&section, "version 1.1 of pcapng; expected 1.0"),
            (&long, "damaged after packet 2"),
        ] {
            let error = all(bytes).unwrap_err().to_string();
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(all(&file[..24]).unwrap().is_empty());
    }

    #[test]
    fn fuzz_capture_files() {
        let mut random = crate::random::seeded();
        let files = [written(&[b"abc", &[7; 300]]), pcapng(false), pcapng(true)];
        for round in 0..crate::random::rounds(5_000) {
            let mut bytes = files[round % files.len()].clone();
            for _ in 0..random.usize(1..8) {
                let at = random.usize(..bytes.len());
                bytes[at] = if random.bool() { random.u8(..) } else { 0xff };
            }
            bytes.truncate(random.usize(..=bytes.len()));
            // Either is fine; a panic or no end is not.
            let _ = all(&bytes);
        }
    }
}
