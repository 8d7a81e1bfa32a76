package conformance

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/lockerkit/locker"
)

// What a store makes of a name may be the same for two of them. If all names here are locked at the same time, each is
// tried against all others. Those of a line are apart in little, and next to one another: see EachNameWakes.

// commonNames are names of the ways in which people fold, trim, escape, match, and cut.
var commonNames = append([]string{
	// case, as ASCII and Unicode have it
	"order", "Order", "ORDER", "\u00e9t\u00e9", "\u00c9T\u00c9", "stra\u00dfe", "STRASSE", "strasse",
	// spaces
	"a", "a ", "a  ", " a", "a\t", "a\n", "a\r\n", "a b", "a  b", "a+b", "a%20b",
	// what separates
	"a:b", "a::b", "a:b:", ":a:b", "a/b", "a//b", "a/b/", "/a/b", "a.b", "a,b", "a;b", "a|b", "a-b", "a_b", "ab",
	// paths, patterns
	"a/./b", "a/../b", "b", "*", "a*", "?", "a?", "%", "a%", "_", "a_", "[a]",
	// escapes
	"%41", "A", "%2F", "%2f", "/", "&amp;", "&", `\n`, "\n", `\`, `\\`, "'", "''", `"`, `\"`, "\x00", `\0`, "a\x00",
	"a\x00b",
	// hash tags
	"{a}", "{a}b", "{a}c", "a{b}c", "a{b}d", "{}a", "{}b", "{", "}", "a}b", "a}c",
	// bytes beyond ASCII
	"\u00e9", "e\u0301", "\xe9", "e", "?", "\xff", "\xfe", "\ufffd", "\U0001F512", "\U0001F513", "\U0001F512\U0001F512",
	"\xed\xa0\x80",
	// the order of bytes, their sum
	"abc", "cba", "bca", "ad", "bc", "Aa", "BB", "0", "00", "01", "1", "1.0", "+1",
}, fullLength(0, 1, 40, 100, 240, 500, 1000, locker.MaxKeyLen-1)...)

// rareNames are more of that kind.
var rareNames = []string{
	"", "i", "I", "\u0130", "i\u0307", "\u0131", "k", "\u212a", "s", "\u017f", "\u03a9", "\u2126", "\ufb01", "fi",
	"\uff21", "\u2460", "\u00b2", "2", "a\u200bb", "a\u00adb", "a\u200db", "a\ufeffb", "\ufeffab", "\u00e0", "a\u0300",
	"\uac00", "\u1100\u1161", "a\u00a0", "a\u3000", "a\v", "a\f", "a\r", "\ta", "\na", "\x00a", "\x00\x00", "a\x00\x00",
	"a\x1fb", "a\tb", "a\nb", "a\r\nb", "a=b", "a&b", "a?b", "a#b", "a@b", "a!b", "a*b", "a~b", "a^b", "a$b", "a<b", "a>b",
	"a(b", "a)b", "a\\b", `a"b`, "a'b", "a`b", "./a", "../a", "a/.", "a/..", "a/", "/a", "//a", "a.", ".a", "a..b", "..",
	".", "~a", "-a", "--a", "#a", "@a", "$a", "${a}", "#{a}", "!a", "^a", "a-", "a:", ":a", "a,", ",a", "a;", "a|", "|a",
	"[ab]", "[!a]", "[^a]", "a**", "a??", "a__", "a%%", "^a$", "a.*", ".*", "a|b|", "(a)", "%%", "%25", "%2525", "%61",
	"%00", "%ff", "%FF", "%C3%A9", "%c3%a9", "%5C", "%7B", "%2B", "%2b", "%2B+", "+", " ", "%s", "%d", "%!s(MISSING)",
	"&#38;", "&lt;", "<", "=41", "=3D", "=", "^A", "\x01", `\x00`, `\u0000`, `\000`, `\x41`, `\u0041`, `\101`, `\t`, "\t",
	`\'`, `\xff`, `\xe9`, "c3a9", "C3A9", "ff", "FF", "41", "0x41", "QQ==", "QQ", "/w==", "_w==", "_41", "-41", ".41",
	"~41", "_2F", "__", "--", "==", "{a}{b}", "{a}{c}", "x{a}y", "{{a}}", "{{a}b", "{a}}", "{}", "{}{a}", "}{", "}a{",
	"{\x00}", "{ a}", "{a }", "{A}", "{A}b", "\x80", "\x81", "\xc3", "\xc3\xa9\xc3", "\xc0\x80", "\xc1\xbf",
	"\xed\xa0\x81", "\xf4\x90\x80\x80", "\xff\xfe", "\xfe\xff", "\ufffd\ufffd", "??", "\U0001F600", "\U0001F601",
	"\U0001F44D", "\U0001F44D\U0001F3FD", "\U0001F1E9\U0001F1EA", "\U0001F1EB\U0001F1F7", "\u2764", "\u2764\ufe0f",
	"\U0001D400", "\U00010400", "\U00010428", "\U0010FFFD", "\u65e5\u672c", "\u65e5\u6728", "acb", "bac", "cab", "aab",
	"abb", "aba", "AaAa", "BBBB", "AaBB", "BBAa", "aabb", "ccbb", "plumless", "buckeroo", "001", "+01", "-1", "-0", "1e0",
	"0x1", "1_0", "10", "1,0", "01.0", "1.00", "true", "TRUE", "null", "NULL", "nil", "undefined", "NaN",
}

// takenNames are what stores may use for themselves, beside a lock that is called "a" here. A backend may refuse them.
var takenNames = []string{
	"a:token", "a:tokens", "a:fence", "a:fencing", "a:seq", "a:counter", "a:queue", "a:wait", "a:waiters", "a:line",
	"a:lock", "a:owner", "a:holder", "a:expires", "a:ttl", "a:free", "a:released", "a:1", "a/token", "a/fence", "a/queue",
	"a/waiters", "a/lock", "a/owner", "a/1", "a/0", "a.lock", "a.token", "a.tmp", "a-token", "a_token", "a@", "a@1", "a!",
	"a#1", "{a}:token", "{a}:fence", "{a}:queue", "token", "tokens", "fence", "queue", "lock", "locks", "lock:a",
	"locks:a", "locks/a", "token:a", "fence:a", "queue:a", "waiters:a", "tmp", "meta", "index", locker.PingKey,
}

// allNames returns all keys of a prefix that the rules about names try.
func (c *check) allNames() []string {
	names := slices.Clone(commonNames)
	for b := range 256 {
		names = append(names, string([]byte{byte(b)}))
	}
	names = slices.Concat(names, rareNames, takenNames, longNames(), c.randomNames(48))
	return slices.DeleteFunc(distinct(names), func(key string) bool { return key == "" })
}

// distinct returns each of some names once, in their order.
func distinct[N comparable](names []N) []N {
	seen := make(map[N]bool)
	return slices.DeleteFunc(names, func(n N) bool {
		was := seen[n]
		seen[n] = true
		return was
	})
}

// longNames returns names of the greatest length that differ in one byte, at all places where people cut, and names
// that are a little longer or shorter than that.
func longNames() (names []string) {
	const length = locker.MaxKeyLen
	cuts := []int{
		0, 1, 2, 3, 4, 7, 8, 12, 15, 16, 20, 23, 31, 32, 35, 36, 39, 40, 47, 48, 49, 50, 62, 63, 64, 65, 95, 99, 100, 119,
		127, 128, 149, 190, 191, 199, 219, 249, 250, 253, 254, 255, 256, 299, 399, 499, 500, 510, 511, 512, 639, 766, 767,
		768, 899, 949, 999, 1000, 1015, 1021, 1022, 1023,
	}
	names = append(fullLength(cuts...), strings.Repeat("k", length))
	for _, at := range cuts {
		names = append(names, strings.Repeat("k", at))
	}
	return append(names, strings.Repeat("\x00", length), strings.Repeat("\x00", length-1), strings.Repeat("}", length),
		strings.Repeat("\U0001F512", length/4), strings.Repeat("\U0001F512", length/4-1)+"\U0001F513",
		strings.Repeat("\u00e9", length/2), strings.Repeat("\u00e9", 127), strings.Repeat("\u00e9", 128),
		strings.Repeat("%", length))
}

// fullLength returns names of the greatest length, each of which differs from the others in what it has at one place.
func fullLength(places ...int) (names []string) {
	k := strings.Repeat("k", locker.MaxKeyLen)
	for _, at := range places {
		names = append(names, k[:at]+"K"+k[at+1:])
	}
	return names
}

// randomNames returns n names of bytes or of characters, and for each another that differs from it in one bit.
func (c *check) randomNames(n int) (names []string) {
	for i := range n {
		var name []byte
		for range 1 + c.draw(40) {
			if i%2 == 0 {
				name = append(name, byte(c.draw(256)))
			} else {
				name = utf8.AppendRune(name, rune(c.draw(0x3000)))
			}
		}
		other := bytes.Clone(name)
		other[c.draw(len(other))] ^= 1 << c.draw(8)
		names = append(names, string(name), string(other))
	}
	return names
}

// firstOrLast are what a name may begin or end with, and a backend trim or take for something else, where there is no
// prefix.
var firstOrLast = []string{
	"a", "A", " ", "\t", "\n", "\x00", "/", "//", "./", "../", ".", "-", "--", "~", "+", "0", "00", "#", "@", "$", "%",
	"*", "?", "!", "^", ":", "::", ";", ",", "|", "&", "=", "\\", "'", `"`, "`", "(", "[", "{", "{}", "{a}", "}", "<", "_",
	"\u00a0", "\ufeff", "\u0301", "\xff", "\x7f", "0x",
}

// escaped returns names, and what becomes of them where only odd ones are written in another way: that is another name.
func escaped(own string) (names []string) {
	for _, end := range []string{"\u00e9", "\xff", "\x00", "%", `\`, " "} {
		whole := own + end
		quoted := strconv.Quote(whole)
		names = append(names, whole, fmt.Sprintf("%x", whole), fmt.Sprintf("%X", whole), quoted, quoted[1:len(quoted)-1],
			url.PathEscape(whole), url.QueryEscape(whole), own+fmt.Sprintf("%x", end),
			base64.StdEncoding.EncodeToString([]byte(whole)), base64.RawStdEncoding.EncodeToString([]byte(whole)))
	}
	return names
}
