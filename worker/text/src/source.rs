//! Byte streams of files: plain, gzip, zstd, and parquet as JSON lines.
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

use parquet::file::reader::FileReader;
use parquet::file::serialized_reader::SerializedFileReader;
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};

pub struct Source {
    reader: Box<dyn Read>,
    pub is_parquet: bool,
}

impl Source {
    pub fn open(path: &str) -> Result<Self, String> {
        let fail = |error: &dyn std::fmt::Display| format!("open {path}: {error}");
        let mut file = File::open(path).map_err(|error| fail(&error))?;
        if file.metadata().map_err(|error| fail(&error))?.is_dir() {
            return Err(format!("open {path}: it is a folder"));
        }
        let mut magic = Vec::new();
        file.by_ref().take(4).read_to_end(&mut magic).map_err(|error| fail(&error))?;
        file.seek(SeekFrom::Start(0)).map_err(|error| fail(&error))?;
        let mut is_parquet = false;
        let reader: Box<dyn Read> = match magic.as_slice() {
            [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(file))),
            [0x28, 0xb5, 0x2f, 0xfd] => {
                Box::new(zstd::stream::read::Decoder::new(file).map_err(|error| fail(&error))?)
            }
            b"PAR1" => {
                is_parquet = true;
                let parquet = SerializedFileReader::new(file).map_err(|error| fail(&error))?;
                let rows = RowIter::from_file_into(Box::new(parquet) as Box<dyn FileReader>);
                Box::new(ParquetLines { rows, line: Vec::new(), at: 0 })
            }
            _ => Box::new(file),
        };
        Ok(Source { reader, is_parquet })
    }

    /// Fills as much of the buffer as there is; 0 at the end.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, String> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.reader.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(filled)
    }
}

struct ParquetLines {
    rows: RowIter<'static>,
    line: Vec<u8>,
    at: usize,
}

impl Read for ParquetLines {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.line.len() {
            let Some(row) = self.rows.next() else { return Ok(0) };
            self.line.clear();
            self.at = 0;
            write_row(&mut self.line, &row.map_err(std::io::Error::other)?)?;
            self.line.push(b'\n');
        }
        let count = buffer.len().min(self.line.len() - self.at);
        buffer[..count].copy_from_slice(&self.line[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

fn write_row(out: &mut Vec<u8>, row: &Row) -> std::io::Result<()> {
    out.push(b'{');
    for (i, (name, field)) in row.get_column_iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        serde_json::to_writer(&mut *out, name)?;
        out.push(b':');
        write_field(out, field)?;
    }
    out.push(b'}');
    Ok(())
}

fn write_float(out: &mut Vec<u8>, value: f64) -> std::io::Result<()> {
    if value.is_finite() {
        serde_json::to_writer(out, &value)?;
    } else {
        out.extend_from_slice(b"null");
    }
    Ok(())
}

fn write_field(out: &mut Vec<u8>, field: &Field) -> std::io::Result<()> {
    match field {
        Field::Null => out.extend_from_slice(b"null"),
        Field::Bool(v) => serde_json::to_writer(out, v)?,
        Field::Byte(v) => serde_json::to_writer(out, v)?,
        Field::Short(v) => serde_json::to_writer(out, v)?,
        Field::Int(v) | Field::Date(v) | Field::TimeMillis(v) => serde_json::to_writer(out, v)?,
        Field::Long(v)
        | Field::TimeMicros(v)
        | Field::TimestampMillis(v)
        | Field::TimestampMicros(v) => serde_json::to_writer(out, v)?,
        Field::UByte(v) => serde_json::to_writer(out, v)?,
        Field::UShort(v) => serde_json::to_writer(out, v)?,
        Field::UInt(v) => serde_json::to_writer(out, v)?,
        Field::ULong(v) => serde_json::to_writer(out, v)?,
        Field::Float16(v) => write_float(out, v.to_f64())?,
        Field::Float(v) => write_float(out, f64::from(*v))?,
        Field::Double(v) => write_float(out, *v)?,
        Field::Decimal(_) => serde_json::to_writer(out, &field.to_string())?,
        Field::Str(text) => serde_json::to_writer(out, text)?,
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => serde_json::to_writer(out, text)?,
            Err(error) => return Err(std::io::Error::other(format!("a binary column: {error}"))),
        },
        Field::Group(row) => write_row(out, row)?,
        Field::ListInternal(list) => {
            out.push(b'[');
            for (i, element) in list.elements().iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_field(out, element)?;
            }
            out.push(b']');
        }
        Field::MapInternal(map) => {
            out.push(b'{');
            for (i, (key, value)) in map.entries().iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                match key {
                    Field::Str(text) => serde_json::to_writer(&mut *out, text)?,
                    key => serde_json::to_writer(&mut *out, &key.to_string())?,
                }
                out.push(b':');
                write_field(out, value)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}
