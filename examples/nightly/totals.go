package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// totals is a directory with a file for each total. The name is that of the day and the fencing token of who has added
// it up: that is how a directory, which cannot compare tokens by itself, is guarded by them. A late file with a smaller
// token changes nothing for those who read.
type totals string

// read returns the total of the greatest token, or fs.ErrNotExist if there is none.
func (dir totals) read(day string) (total int, err error) {
	files, err := filepath.Glob(filepath.Join(string(dir), day+".*.total")) // sorted
	if err != nil {
		return 0, err
	}
	if len(files) == 0 {
		return 0, fs.ErrNotExist
	}
	text, err := os.ReadFile(files[len(files)-1])
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(text))
}

// write stores a total, whole or not at all.
func (dir totals) write(day string, token uint64, total int) error {
	name := filepath.Join(string(dir), fmt.Sprintf("%s.%020d.total", day, token))
	if err := os.MkdirAll(string(dir), 0o777); err != nil {
		return err
	}
	if err := os.WriteFile(name+".new", []byte(strconv.Itoa(total)), 0o666); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}
