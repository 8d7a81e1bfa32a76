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

// parseToken reads a minted token and the greatest that may be used. It returns 0 if the one that was minted may not be used.
func parseToken(token, limit string) uint64 {
	t, err := strconv.ParseUint(token, 10, 63)
	most, err2 := strconv.ParseUint(limit, 10, 63) // "" if there is none
	if err != nil || err2 != nil || t > most {
		return 0
	}
	return t
}

// parseTry reads the answer of locker_try: number, token, limit and whether each lock was taken; or of locker_try_one, which has
// a token if it was. The token is 0 if it may not be used.
func parseTry(row []string) (token uint64, taken []bool) {
	switch len(row) {
	case 3:
		return parseToken(row[1], row[2]), []bool{row[1] != ""}
	case 4:
		return parseToken(row[1], row[2]), parseBools(row[3])
	}
	return 0, nil
}
