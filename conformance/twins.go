package conformance

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/lockerkit/locker"
)

// twins are two owners that somebody may take for one.
type twins struct {
	holder, stranger locker.Owner
	how              string
	fixed            bool // they are always the same
}

const ownerSize = len(locker.Owner{})

// allTwins returns twins of many kinds: whoever compares something else than all bytes as they are takes at least one
// pair for the same. No owner is in two of them.
func allTwins(random *rand.Rand) []twins {
	var all []twins
	add := func(how string, holder, stranger locker.Owner) {
		all = append(all, twins{holder: holder, stranger: stranger, how: how})
	}
	draw := func() (o locker.Owner) { // without NUL
		for i := range o {
			o[i] = byte(1 + random.IntN(255))
		}
		return o
	}
	differing := func(how string, change func(o *locker.Owner)) {
		holder := draw()
		stranger := holder
		change(&stranger)
		if holder != stranger {
			add(how, holder, stranger)
		}
	}

	// A part of the bytes, or of each byte.
	for bit := range 8 * ownerSize {
		differing(fmt.Sprintf("differs in bit %d only", bit), func(o *locker.Owner) { o[bit/8] ^= 1 << (bit % 8) })
	}
	// A C string.
	for at := range ownerSize - 1 {
		holder, stranger := draw(), draw()
		holder[at] = 0
		copy(stranger[:at+1], holder[:])
		stranger[ownerSize-1] = holder[ownerSize-1] + 1
		add(fmt.Sprintf("is the same up to a NUL at byte %d", at), holder, stranger)
	}
	differing("ends before the holder's, with NULs", func(o *locker.Owner) { clear(o[ownerSize/2:]) })
	differing("begins after the holder's, with NULs", func(o *locker.Owner) { clear(o[:ownerSize/2]) })
	// A sum, or a set.
	for n := 1; n < ownerSize; n *= 2 {
		differing(fmt.Sprintf("has two words of %d bytes the other way round", n), func(o *locker.Owner) {
			first := bytes.Clone(o[:n])
			copy(o[:n], o[n:2*n])
			copy(o[n:2*n], first)
		})
	}
	differing("is the holder's backwards", func(o *locker.Owner) { slices.Reverse(o[:]) })
	return slices.Concat(all, textTwins(random, draw), checksumTwins)
}

// textTwins are alike for whoever takes an owner for text.
func textTwins(random *rand.Rand, draw func() locker.Owner) (all []twins) {
	// spelt returns an owner and his twin, each byte of which is that of a pair.
	spelt := func(how string, pairs ...[2]byte) {
		t := twins{how: how}
		for i := range ownerSize {
			pair := pairs[random.IntN(len(pairs))]
			t.holder[i], t.stranger[i] = pair[0], pair[1]
		}
		all = append(all, t)
	}
	var letters, invalid [][2]byte
	for c := byte('a'); c <= 'z'; c++ {
		letters = append(letters, [2]byte{c, c - 'a' + 'A'})
	}
	for c := byte(0xf5); c < 0xff; c++ {
		invalid = append(invalid, [2]byte{c, c + 1})
	}
	spelt("is the same without case", letters...)
	spelt("is no valid UTF-8, either", invalid...)
	spelt("is the same without accents, in Latin-1",
		[2]byte{'a', 0xe4}, [2]byte{'e', 0xe9}, [2]byte{'o', 0xf6}, [2]byte{'u', 0xfc})

	white := draw()
	white[0], white[ownerSize-1] = ' ', ' '
	for i := 1; i < ownerSize-1; i++ {
		white[i] = 'a' + white[i]%26
	}
	other := white
	other[0], other[ownerSize-1] = '\t', 0
	all = append(all, twins{holder: white, stranger: other, how: "differs in white space"})

	number := func(digits byte) locker.Owner { return locker.Owner{0x0e, ownerSize - 1: digits} } // 0e0...
	all = append(all, twins{
		holder: number(1), stranger: number(2), how: "is the same number, where text can be one", fixed: true,
	})

	for _, s := range []string{"\x00", "\xff", "%", "_", "*", "?", ".*", "."} { // what matches all, in some language
		var o locker.Owner
		copy(o[:], bytes.Repeat([]byte(s), ownerSize))
		holder := draw()
		for i := range holder { // a letter, as some patterns match no slash
			holder[i] = 'a' + holder[i]%26
		}
		all = append(all, twins{holder: holder, stranger: o, how: fmt.Sprintf("is %q again and again", s), fixed: true})
	}
	return all
}

// checksumTwins have the same checksum, of their bytes or of these in hexadecimal, and so the same part of that.
var checksumTwins = func() (all []twins) {
	for _, sum := range checksums {
		t := twins{how: "has the same " + sum.name, fixed: true}
		_, _ = hex.Decode(t.holder[:], []byte(sum.a))
		_, _ = hex.Decode(t.stranger[:], []byte(sum.b))
		if sum.text {
			t.how += " in hexadecimal"
		}
		all = append(all, t)
	}
	return all
}()

// checksums were found by trying. TestChecksums looks whether they are right.
var checksums = []struct {
	name string
	text bool
	a, b string
}{
	{"CRC-32", false, "c0661dadd45c4ca1ea91a202e16792df", "b41cde61ea41e2a05e0b186c0a99a477"},
	{"CRC-32", true, "5008b9a00474cc4608db558322828b78", "7ff625c5480066efa6b8ff42fde5ab46"},
	{"CRC-32C", false, "064a01d2dbe84efd61023b4c4e0386db", "b0ce9e5fc21a23752c419ab71371ae96"},
	{"CRC-32C", true, "e154e9cb0b63b7955fd958105eaece43", "a69500c002690e0025f78190f5ff98dd"},
	{"FNV-1", false, "5c9258e2e4679465a1cec4164dca43c1", "2c9bea9ed142affcbc6f7521875b0ab2"},
	{"FNV-1", true, "69eb5d14da4f7692d6daef9b87572f48", "756579ac871a409adf5738060c551372"},
	{"FNV-1a", false, "0d729ccce9bb3fdd87ca94669adac294", "d03017123f6dff7b0e635daf9dd2ef82"},
	{"FNV-1a", true, "b61b99acc52449b636fe020850ac4ce1", "57077abb65f2f9accb29dbca23668fe9"},
	{"Adler-32", false, "46d8be8f3eb57924e3a3908125455f74", "b66bcf24ba6ab948ef483d10bffa1f3a"},
	{"Adler-32", true, "5fb7011b60ad2bfbf5936e326bb397d9", "dcc103390ef9f08c5f90f615af6261da"},
	{"hash as of Java's strings", false, "4c193837eb4ecaa0f68249ca0e9532aa", "f87dda23b2c545cf028aa6677954f032"},
	{"hash as of Java's strings", true, "659d7a6b7a5d850d1344b170a88db3a4", "fbeef1c429b102dd38e52823914fdf58"},
	{"djb2", false, "50e80a10066b1358a3440cba2d288108", "289e2e91a00485058e6b517301c8c57b"},
	{"djb2", true, "d70dad6aed542b2222a72e160cfb9a57", "8c81601b32a630b5402304ad727dab13"},
}

// drawOwner returns a random owner.
func drawOwner(random *rand.Rand) (o locker.Owner) {
	binary.NativeEndian.PutUint64(o[:8], random.Uint64())
	binary.NativeEndian.PutUint64(o[8:], random.Uint64())
	return o
}
