package conformance

import (
	"encoding/binary"
	"hash"
	"hash/adler32"
	"hash/crc32"
	"hash/fnv"
	"math/bits"
	"testing"
)

func polynomial(factor, h uint32) func([]byte) uint32 {
	return func(b []byte) uint32 {
		h := h
		for _, c := range b {
			h = h*factor + uint32(c)
		}
		return h
	}
}

func lowerHalf(of func() hash.Hash64) func([]byte) uint32 {
	return func(b []byte) uint32 {
		h := of()
		h.Write(b)
		return uint32(h.Sum64()) //nolint:gosec // so it is meant
	}
}

func djb2a(b []byte) uint32 {
	h := uint32(5381)
	for _, c := range b {
		h = h*33 ^ uint32(c)
	}
	return h
}

func oneAtATime(b []byte) (h uint32) {
	for _, c := range b {
		h += uint32(c)
		h += h << 10
		h ^= h >> 6
	}
	h += h << 3
	h ^= h >> 11
	return h + h<<15
}

func murmur3(b []byte) (h uint32) {
	const c1, c2 = 0xcc9e2d51, 0x1b873593
	length := len(b)
	for ; len(b) >= 4; b = b[4:] {
		h ^= bits.RotateLeft32(binary.LittleEndian.Uint32(b)*c1, 15) * c2
		h = bits.RotateLeft32(h, 13)*5 + 0xe6546b64
	}
	var rest [4]byte
	copy(rest[:], b)
	h ^= bits.RotateLeft32(binary.LittleEndian.Uint32(rest[:])*c1, 15) * c2
	h ^= uint32(length)
	h = (h ^ h>>16) * 0x85ebca6b
	h = (h ^ h>>13) * 0xc2b2ae35
	return h ^ h>>16
}

// TestTwins: they have the same hash, whatever follows.
func TestTwins(t *testing.T) {
	t.Parallel()
	hashes := map[string]func([]byte) uint32{
		"FNV-1a":  func(b []byte) uint32 { h := fnv.New32a(); h.Write(b); return h.Sum32() },
		"FNV-1":   func(b []byte) uint32 { h := fnv.New32(); h.Write(b); return h.Sum32() },
		"CRC-32":  crc32.ChecksumIEEE,
		"CRC-32C": func(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) },
		"FNV-1a of 64 bits, of which the lower half is used,": lowerHalf(fnv.New64a),
		"FNV-1 of 64 bits, of which the lower half is used,":  lowerHalf(fnv.New64),
		"Adler-32":                          adler32.Checksum,
		"String.hashCode of Java":           polynomial(31, 0),
		"djb2":                              polynomial(33, 5381),
		"djb2a":                             djb2a,
		"sdbm":                              polynomial(65599, 0),
		"the one-at-a-time hash of Jenkins": oneAtATime,
		"MurmurHash3":                       murmur3,
	}
	for _, tw := range knownTwins {
		hash := hashes[tw.hash]
		for _, rest := range []string{"", "/", "/conformance/0123456789abcdef"} {
			if one, other := hash([]byte(tw.first+rest)), hash([]byte(tw.second+rest)); one != other {
				t.Errorf("%s of %q is %x, of %q %x", tw.hash, tw.first+rest, one, tw.second+rest, other)
			}
		}
		if len(tw.first) != 8 || len(tw.second) != 8 || tw.first == tw.second {
			t.Errorf("%q and %q", tw.first, tw.second)
		}
	}
	for i, tw := range foundTwins() {
		hash := wholeHashes[i].sum
		if hash([]byte(tw.first)) != hash([]byte(tw.second)) || tw.first == tw.second {
			t.Errorf("%s of %q and %q", tw.hash, tw.first, tw.second)
		}
	}
}

// TestHashtext: it is what Postgres 15 says.
func TestHashtext(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int32{
		"": -1477818771, "a": 1075015857, "abcdefgh": -1960928205, "abcdefghi": -92131489, "abcdefghijk": -1483803693,
		"abcdefghijkl": -1586087212, "abcdefghijklmnopqrstuvwxyz0123456789": 1318422268,
	} {
		if got := int32(hashtext([]byte(text))); got != want { //nolint:gosec // so it is in Postgres
			t.Errorf("hashtext(%q) = %d; want %d", text, got, want)
		}
	}
}
