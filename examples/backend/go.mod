module github.com/lockerkit/locker/examples/backend

go 1.26.0

replace github.com/lockerkit/locker => ../..

require github.com/lockerkit/locker v0.0.0
