package etcdtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// pki is what the members of a cluster and its clients prove themselves with.
type pki struct {
	authority []byte // PEM
	cert, key []byte // PEM, of the members
	client    *tls.Config
}

// newPKI makes an authority, which signs a certificate for the members and one
// for the clients.
func newPKI() (*pki, error) {
	authority := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "etcdtest"},
		NotAfter:              time.Now().Add(24 * time.Hour),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, authority, authority, &signer.PublicKey, signer)
	if err != nil {
		return nil, err
	}
	sign := func(serial int64, name string) (cert, key []byte, err error) {
		private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, nil, err
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(serial),
			Subject:      pkix.Name{CommonName: name},
			NotAfter:     authority.NotAfter,
			IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
			// A member is a client of itself, too.
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		cert, err = x509.CreateCertificate(rand.Reader, template, authority, &private.PublicKey, signer)
		if err != nil {
			return nil, nil, err
		}
		key, err = x509.MarshalPKCS8PrivateKey(private)
		return encode("CERTIFICATE", cert), encode("PRIVATE KEY", key), err
	}
	p := &pki{authority: encode("CERTIFICATE", der)}
	if p.cert, p.key, err = sign(2, "member"); err != nil {
		return nil, err
	}
	cert, key, err := sign(3, "client")
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(p.authority)
	p.client = &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}
	return p, nil
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// write writes the files of a member. There are none without TLS.
func (p *pki) write(dir string) error {
	if p == nil {
		return nil
	}
	var errs []error
	for name, text := range map[string][]byte{"ca.crt": p.authority, "server.crt": p.cert, "server.key": p.key} {
		errs = append(errs, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
	return errors.Join(errs...)
}

// flags are for a member that has its files in the directory.
func (p *pki) flags(dir string) []string {
	if p == nil {
		return nil
	}
	return []string{
		"--cert-file=" + filepath.Join(dir, "server.crt"),
		"--key-file=" + filepath.Join(dir, "server.key"),
		"--trusted-ca-file=" + filepath.Join(dir, "ca.crt"),
		"--client-cert-auth",
	}
}
