package conformance

import (
	"crypto/md5"  //nolint:gosec // nothing is kept secret by it: backends use it for names
	"crypto/sha1" //nolint:gosec // the same
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math/bits"
	"math/rand/v2"
	"sync"
)

// A store that keeps locks by a hash of 32 bits shares some among a hundred thousand names. That many take a while to
// lock; two with the same hash can be known beforehand.

// collision is two strings with the same hash, as are all strings that begin with them and go on alike: such a hash
// knows no more of what it has read than the 32 bits that it returns.
type collision struct{ hash, first, second string }

var knownTwins = []collision{
	{"FNV-1a", "zwwqnnlm", "3bd552fe"},
	{"FNV-1", "w3k4giz4", "spasfb5c"},
	{"FNV-1a of 64 bits, of which the lower half is used,", "ktfaradx", "yb4ztrsi"},
	{"FNV-1 of 64 bits, of which the lower half is used,", "e5serewr", "bdv4ssrz"},
	{"CRC-32", "5lcr4wcn", "6azu2wjq"},
	{"CRC-32C", "i5d23z4p", "52hxu5g2"},
	{"Adler-32", "w3zjvc72", "oyu44oj2"},
	{"String.hashCode of Java", "xmwwnrwl", "pej6juq3"},
	{"djb2", "dsy4lh7k", "yw7vbts4"},
	{"djb2a", "ceei6pyo", "ehpdfmjb"},
	{"sdbm", "4dyftozc", "gxzttelq"},
	{"the one-at-a-time hash of Jenkins", "25dzmjps", "4d2rcxjv"},
	{"MurmurHash3", "skk5xfs2", "vzpbmbit"},
}

// wholeHashes are hashes of which that is not so: twins have to be searched for among whole names.
var wholeHashes = []struct {
	name string
	sum  func([]byte) uint32
}{
	{"SHA-256, of which the first four bytes are used,", func(b []byte) uint32 {
		sum := sha256.Sum256(b)
		return binary.BigEndian.Uint32(sum[:])
	}},
	{"SHA-1, of which the first four bytes are used,", func(b []byte) uint32 {
		sum := sha1.Sum(b) //nolint:gosec // see above
		return binary.BigEndian.Uint32(sum[:])
	}},
	{"MD5, of which the first four bytes are used,", func(b []byte) uint32 {
		sum := md5.Sum(b) //nolint:gosec // see above
		return binary.BigEndian.Uint32(sum[:])
	}},
	{"FNV-1a of 64 bits, whose halves are joined by XOR,", func(b []byte) uint32 {
		h := fnv.New64a()
		_, _ = h.Write(b)
		sum := h.Sum64()
		return uint32(sum) ^ uint32(sum>>32) //nolint:gosec // the halves
	}},
	{"hashtext of Postgres", hashtext},
}

// foundTwins returns names with the same hash. They are the same for all Runs of this process: who locks them has
// usingTwins.
var (
	foundTwins = sync.OnceValue(func() (found []collision) {
		prefix := fmt.Sprintf("conformance/%016x/", rand.Uint64())
		for _, h := range wholeHashes {
			first, second := searchTwins(prefix, h.sum)
			found = append(found, collision{h.name, first, second})
		}
		return found
	})
	usingTwins sync.Mutex
)

// searchTwins returns two names with the given prefix that have the same hash. It looks at some 100,000 names.
func searchTwins(prefix string, sum func([]byte) uint32) (first, second string) {
	const digits = 12
	random := rand.New(rand.NewPCG(rand.Uint64(), 0)) //nolint:gosec // not a secret
	name := append([]byte(prefix), make([]byte, digits)...)
	seen := make(map[uint32]uint64, 1<<17)
	write := func(n uint64) {
		for i := range digits {
			name[len(prefix)+i] = "0123456789abcdefghijklmnopqrstuv"[n>>(5*i)&31]
		}
	}
	for {
		n := random.Uint64() >> (64 - 5*digits)
		write(n)
		hash := sum(name)
		if other, ok := seen[hash]; ok && other != n {
			second = string(name)
			write(other)
			return string(name), second
		}
		seen[hash] = n
	}
}

// hashtext is the SQL function of that name, which is much used with advisory locks: the lookup3 hash of Jenkins, as
// Postgres has it on little-endian machines.
func hashtext(b []byte) uint32 {
	seed := 0x9e3779b9 + uint32(len(b)) + 3923095 //nolint:gosec // names are short
	x, y, z := seed, seed, seed
	for ; len(b) >= 12; b = b[12:] {
		x += binary.LittleEndian.Uint32(b)
		y += binary.LittleEndian.Uint32(b[4:])
		z += binary.LittleEndian.Uint32(b[8:])
		x = (x - z) ^ bits.RotateLeft32(z, 4)
		z += y
		y = (y - x) ^ bits.RotateLeft32(x, 6)
		x += z
		z = (z - y) ^ bits.RotateLeft32(y, 8)
		y += x
		x = (x - z) ^ bits.RotateLeft32(z, 16)
		z += y
		y = (y - x) ^ bits.RotateLeft32(x, 19)
		x += z
		z = (z - y) ^ bits.RotateLeft32(y, 4)
		y += x
	}
	var rest [12]byte
	copy(rest[:8], b)
	if len(b) > 8 { // the lowest byte of z is kept for the length
		copy(rest[9:], b[8:])
	}
	x += binary.LittleEndian.Uint32(rest[:])
	y += binary.LittleEndian.Uint32(rest[4:])
	z += binary.LittleEndian.Uint32(rest[8:])
	z = (z ^ y) - bits.RotateLeft32(y, 14)
	x = (x ^ z) - bits.RotateLeft32(z, 11)
	y = (y ^ x) - bits.RotateLeft32(x, 25)
	z = (z ^ y) - bits.RotateLeft32(y, 16)
	x = (x ^ z) - bits.RotateLeft32(z, 4)
	y = (y ^ x) - bits.RotateLeft32(x, 14)
	z = (z ^ y) - bits.RotateLeft32(y, 24)
	return z
}
