// Package objects guards objects in S3, or in what speaks its protocol and knows conditional writes, with fencing
// tokens. It is a module of its own, for the sake of the client's dependencies. See docs/fencing.md.
package objects

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// ErrStale says that the object was written with a greater token: the one who writes holds the lock no longer.
var ErrStale = errors.New("stale token: another holder has been here")

// Object is an object of S3 whose first line is the token of who wrote it, in decimal digits. In the metadata, the
// token would not be part of the ETag: a new holder who writes the same content again would leave the same ETag, and a
// stale one who had read it before would get in.
//
// It must not be deleted, nor expire: its fence would go with it. Write an empty content instead.
type Object struct {
	Client      *s3.Client
	Bucket, Key string
}

// Get returns the content, which is empty at first. Unlike Update, it does not keep a stale holder from writing
// afterwards.
func (o Object) Get(ctx context.Context) ([]byte, error) {
	v, err := o.read(ctx)
	return v.content, err
}

// Update writes what f makes of the content, if no greater token has been used. If somebody else has written between
// the read and the write, it reads, asks and calls f again. So it does if the answer of a write gets lost: then f may
// get what it has made itself.
func (o Object) Update(ctx context.Context, token uint64, f func(old []byte) []byte) error {
	for {
		was, err := o.read(ctx)
		if err != nil {
			return err
		}
		if token < was.token {
			return ErrStale
		}
		err = o.write(ctx, version{token: token, content: f(was.content), etag: was.etag})
		if !changedMeanwhile(err) {
			return err
		}
	}
}

// version is what an object was, or is to be.
type version struct {
	token   uint64
	content []byte
	etag    *string // of what it was before it is written; nil if there was nothing
}

func (o Object) read(ctx context.Context) (v version, err error) {
	out, err := o.Client.GetObject(ctx, &s3.GetObjectInput{Bucket: &o.Bucket, Key: &o.Key})
	if status(err) == http.StatusNotFound {
		return version{}, nil
	}
	if err != nil {
		return v, err
	}
	defer func() { _ = out.Body.Close() }()
	body, err := io.ReadAll(out.Body)
	if err != nil {
		return v, err
	}
	digits, content, _ := bytes.Cut(body, []byte("\n"))
	v.token, err = strconv.ParseUint(string(digits), 10, 64)
	v.content, v.etag = content, out.ETag
	return v, err
}

func (o Object) write(ctx context.Context, v version) error {
	body := append(strconv.AppendUint(nil, v.token, 10), '\n')
	in := &s3.PutObjectInput{
		Bucket:  &o.Bucket,
		Key:     &o.Key,
		Body:    bytes.NewReader(append(body, v.content...)),
		IfMatch: v.etag,
	}
	if v.etag == nil {
		in.IfNoneMatch = aws.String("*")
	}
	_, err := o.Client.PutObject(ctx, in)
	return err
}

// changedMeanwhile reports whether a write was refused as its condition does not hold: 412; 409 if another write is
// under way; 404 if the object has been deleted.
func changedMeanwhile(err error) bool {
	s := status(err)
	return s == http.StatusPreconditionFailed || s == http.StatusConflict || s == http.StatusNotFound
}

// status returns the status of the response that an error is about, or 0.
func status(err error) int {
	var response *awshttp.ResponseError
	if errors.As(err, &response) {
		return response.HTTPStatusCode()
	}
	return 0
}
