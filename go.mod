module github.com/lockerkit/locker

go 1.26.0
