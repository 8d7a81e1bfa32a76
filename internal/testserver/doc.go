// Package testserver is what the packages have in common that provide real
// servers for tests: to find the program, to skip or fail without it, to start
// it on a port of its own, to wait until it is up, and to signal, kill and
// restart it.
package testserver
