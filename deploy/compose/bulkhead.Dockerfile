FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o /bulkhead ./cmd/bulkhead

# busybox has the shell of the init service and the wget of the health checks.
FROM busybox:1.37
COPY --from=build /bulkhead /bulkhead
ENTRYPOINT ["/bulkhead"]
