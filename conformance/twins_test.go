package conformance

import (
	"hash/adler32"
	"hash/crc32"
	"hash/fnv"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/lockerkit/locker"
)

// TestOwnerTwins: they differ, and no owner is in two of them, as an owner is one acquisition.
func TestOwnerTwins(t *testing.T) {
	for seed := range uint64(1000) {
		seen := make(map[locker.Owner]string)
		for _, pair := range allTwins(rand.New(rand.NewPCG(seed, 0))) {
			for _, o := range []locker.Owner{pair.holder, pair.stranger} {
				if other, ok := seen[o]; ok {
					t.Errorf("seed %d: %v is there twice: who %s, and who %s", seed, o, other, pair.how)
				}
				seen[o] = pair.how
			}
		}
	}
}

// TestChecksums: the checksums are those that they say.
func TestChecksums(t *testing.T) {
	times := func(h, factor uint32) func(string) uint32 {
		return func(s string) uint32 {
			sum := h
			for i := range len(s) {
				sum = factor*sum + uint32(s[i])
			}
			return sum
		}
	}
	sums := map[string]func(string) uint32{
		"CRC-32":  func(s string) uint32 { return crc32.ChecksumIEEE([]byte(s)) },
		"CRC-32C": func(s string) uint32 { return crc32.Checksum([]byte(s), crc32.MakeTable(crc32.Castagnoli)) },
		"FNV-1": func(s string) uint32 {
			h := fnv.New32()
			h.Write([]byte(s))
			return h.Sum32()
		},
		"FNV-1a": func(s string) uint32 {
			h := fnv.New32a()
			h.Write([]byte(s))
			return h.Sum32()
		},
		"Adler-32":                  func(s string) uint32 { return adler32.Checksum([]byte(s)) },
		"hash as of Java's strings": times(0, 31),
		"djb2":                      times(5381, 33),
	}
	for _, pair := range checksumTwins {
		name, text := strings.CutSuffix(strings.TrimPrefix(pair.how, "has the same "), " in hexadecimal")
		holder, stranger := string(pair.holder[:]), string(pair.stranger[:])
		if text {
			holder, stranger = pair.holder.String(), pair.stranger.String()
		}
		sum := sums[name]
		if sum == nil || sum(holder) != sum(stranger) {
			t.Errorf("%v and %v do not have the same %s", pair.holder, pair.stranger, name)
		}
	}
}
