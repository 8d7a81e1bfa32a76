package pglock

import (
	"strconv"
	"strings"
)

// parseBools returns the elements of an array of booleans as Postgres writes it, such as {t,f}, or a single one.
func parseBools(array string) []bool {
	array = strings.TrimSuffix(strings.TrimPrefix(array, "{"), "}")
	if array == "" {
		return nil
	}
	words := strings.Split(array, ",")
	bools := make([]bool, len(words))
	for i, w := range words {
		bools[i] = w == "t"
	}
	return bools
}

// parseEnter reads the answer of locker_enter or locker_slot: number, token and the number of the slot that each has
// got, which is 0 for a reader, and none for who has got nothing; or of locker_enter_one, which has a token if the
// reader got in.
func parseEnter(row []string) (token uint64, numbers []int) {
	if len(row) == 2 {
		if row[1] == "" {
			return 0, []int{none}
		}
		return parseToken(row[1]), []int{0}
	}
	if len(row) != 3 {
		return 0, nil
	}
	list := strings.TrimSuffix(strings.TrimPrefix(row[2], "{"), "}")
	if list == "" {
		return 0, nil
	}
	for _, word := range strings.Split(list, ",") {
		n, err := strconv.ParseUint(word, 10, 31)
		if err != nil {
			numbers = append(numbers, none) // NULL
		} else {
			numbers = append(numbers, int(n))
		}
	}
	return parseToken(row[1]), numbers
}

// parseUnlock reads the answer of locker_unlock: number, whether each lock was given back, and whether somebody wants
// it. Both lists are empty if that is no such answer.
func parseUnlock(row []string) (done, wanted []bool) {
	if len(row) != 3 {
		return nil, nil
	}
	done, wanted = parseBools(row[1]), parseBools(row[2])
	if len(done) != len(wanted) {
		return nil, nil
	}
	return done, wanted
}

// parseToken reads a token. It returns 0 if there is none.
func parseToken(token string) uint64 {
	t, err := strconv.ParseUint(token, 10, 63)
	if err != nil {
		return 0
	}
	return t
}

// parseTry reads the answer of locker_try: number, token and whether each lock was taken; or of locker_try_one, which
// has a token if it was.
func parseTry(row []string) (token uint64, taken []bool) {
	switch len(row) {
	case 2:
		return parseToken(row[1]), []bool{row[1] != ""}
	case 3:
		return parseToken(row[1]), parseBools(row[2])
	}
	return 0, nil
}
