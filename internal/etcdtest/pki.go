package etcdtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// pki is what the members of a cluster and its clients prove themselves with: one certificate for all, which has signed
// itself.
type pki struct {
	cert, key []byte // PEM
	client    *tls.Config
}

func newPKI() (*pki, error) {
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	cert, err1 := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	key, err2 := x509.MarshalPKCS8PrivateKey(private)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	p := &pki{
		cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
	}
	pair, err := tls.X509KeyPair(p.cert, p.key)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(p.cert)
	p.client = &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}
	return p, err
}

// write writes the files of a member. There are none without TLS.
func (p *pki) write(dir string) error {
	if p == nil {
		return nil
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "server.crt"), p.cert, 0o600),
		os.WriteFile(filepath.Join(dir, "server.key"), p.key, 0o600))
}

// flags are for a member that has its files in the directory.
func (p *pki) flags(dir string) []string {
	if p == nil {
		return nil
	}
	return []string{
		"--cert-file=" + filepath.Join(dir, "server.crt"),
		"--key-file=" + filepath.Join(dir, "server.key"),
		"--trusted-ca-file=" + filepath.Join(dir, "server.crt"),
		"--client-cert-auth",
	}
}
